"use strict";
// Texts of a run reach the page through textContent alone.
const byId = (id) => document.getElementById(id);

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function startTheme() {
  const root = document.documentElement;
  const remember = (theme) => { try { localStorage.setItem("cpo-ray-theme", theme); } catch { /* a private window */ } };
  const recall = () => { try { return localStorage.getItem("cpo-ray-theme"); } catch { return null; } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const current = () => root.dataset.theme || (system.matches ? "dark" : "light");
  const show = () => { byId("theme").textContent = current() === "dark" ? "Light theme" : "Dark theme"; };
  const kept = recall();
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  byId("theme").addEventListener("click", () => {
    root.dataset.theme = current() === "dark" ? "light" : "dark";
    remember(root.dataset.theme);
    show();
  });
  system.addEventListener("change", show);
  show();
}

function startSamples() {
  const PAGE = 20;
  const BADGES = 6;
  const data = JSON.parse(byId("sample-data").textContent);
  const controls = Object.fromEntries(
    ["search", "category", "decoding", "model", "verdict", "compare"].map((id) => [id, byId(id)]));
  const haystacks = data.rows.map((row) =>
    [row.id, row.prompt, row.gold, ...row.answers.flat().map((answer) => (answer ? answer[0] : ""))].join("\n").toLowerCase());
  let found = [];
  let page = 0;
  let open = -1; // position in `found`
  let typing = 0; // timer of a search that has not been applied yet

  const addOption = (select, value, text) => {
    const option = element("option", "", text);
    option.value = value;
    select.append(option);
  };
  [...new Set(data.rows.map((row) => row.category))].filter(Boolean).sort().forEach((name) => addOption(controls.category, name, name));
  data.decodings.forEach((name, index) => addOption(controls.decoding, index, name));
  data.models.forEach((name, index) => addOption(controls.model, index, name));
  data.models.forEach((name, index) => {
    const baseline = data.baselines[index];
    if (baseline < 0) return;
    addOption(controls.compare, `${index}>${baseline}`, `${name} better than mle`);
    addOption(controls.compare, `${baseline}>${index}`, `${name} worse than mle`);
  });
  controls.category.parentElement.hidden = controls.category.options.length < 3;
  controls.decoding.parentElement.hidden = data.decodings.length < 2;

  const answersOf = (row) => row.answers[Number(controls.decoding.value)];
  const outcomeOf = (answer) => (answer && answer[1]) || "none";
  const SCORE = { win: 2, tie: 1, loss: 0 };

  function compares(answers) {
    const wanted = controls.compare.value;
    if (!wanted) return true;
    if (wanted === "disagree") {
      return new Set(answers.map(outcomeOf).filter((outcome) => outcome in SCORE)).size > 1;
    }
    const [better, worse] = wanted.split(">").map((index) => SCORE[outcomeOf(answers[Number(index)])]);
    return better > worse; // false where either is not judged
  }

  function matches(row, index) {
    const answers = answersOf(row);
    const { category, model, verdict } = controls;
    if (category.value && row.category !== category.value) return false;
    if (verdict.value || model.value) {
      const chosen = model.value ? [answers[Number(model.value)]] : answers;
      if (!chosen.some((answer) => (verdict.value ? outcomeOf(answer) === verdict.value : answer))) return false;
    }
    const words = controls.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    return words.every((word) => haystacks[index].includes(word)) && compares(answers);
  }

  // A row has room for a few verdicts: those of the models that are filtered by, then the first ones.
  function badged() {
    const wanted = [controls.model.value, ...controls.compare.value.split(">")].filter((value) => /^\d+$/.test(value)).map(Number);
    const merged = (index) => Number(data.models[index].includes("merged-"));
    const others = [...data.models.keys()].sort((first, second) => merged(first) - merged(second));
    return new Set([...new Set([...wanted, ...others])].slice(0, BADGES));
  }

  const longestCategory = Math.max(0, ...data.rows.map((row) => row.category.length));

  // As wide on every row, so that a model's verdicts stand in a column.
  const aligned = (node, characters) => { node.style.setProperty("--characters", characters); return node; };

  function badge(name, answer) {
    const outcome = outcomeOf(answer);
    const node = element("span", `badge ${outcome}`);
    node.append(element("span", "who", name), element("span", "what", outcome === "none" ? "not judged" : outcome));
    return node;
  }

  function renderList() {
    const list = byId("list");
    const first = page * PAGE;
    list.replaceChildren(...found.slice(first, first + PAGE).map((index, offset) => {
      const row = data.rows[index];
      const button = element("button", "row");
      button.type = "button";
      const lines = row.prompt.trim();
      button.append(element("span", "excerpt", lines.length > 240 ? `${lines.slice(0, 240)}\u2026` : lines));
      const badges = element("span", "badges");
      if (row.category) badges.append(aligned(element("span", "category", row.category), longestCategory));
      const shown = badged();
      answersOf(row).forEach((answer, model) => {
        if (answer && shown.has(model)) badges.append(aligned(badge(data.models[model], answer), data.models[model].length + 5));
      });
      if (shown.size < data.models.length) badges.append(element("span", "category", `+${data.models.length - shown.size} more`));
      button.append(badges);
      button.addEventListener("click", () => openSample(first + offset));
      const item = element("li");
      item.append(button);
      return item;
    }));
    list.start = first + 1;
    byId("count").textContent = found.length
      ? `${first + 1} to ${Math.min(first + PAGE, found.length)} of ${found.length} prompts` +
        (found.length < data.rows.length ? ` (${data.rows.length} in all)` : "")
      : "No prompt fits these filters.";
    byId("previous-page").disabled = page === 0;
    byId("next-page").disabled = first + PAGE >= found.length;
  }

  function filter() {
    clearTimeout(typing);
    typing = 0;
    found = data.rows.map((_, index) => index).filter((index) => matches(data.rows[index], index));
    page = 0;
    renderList();
  }

  function card(title, text, extra, className) {
    const node = element("article", `card ${className}`);
    const head = element("h4", "", title);
    const labels = element("span", "badges");
    labels.append(...extra);
    head.append(labels);
    node.append(head, text === "" ? element("p", "empty", "(empty)") : element("pre", "", text));
    return node;
  }

  function openSample(position) {
    clearTimeout(typing); // what is opened, and walked from there, is of the list as it stands
    open = position;
    const row = data.rows[found[position]];
    byId("sample-title").textContent = `Sample ${position + 1} of ${found.length}`;
    const cards = [card("Ground truth", row.gold, [], "gold")];
    answersOf(row).forEach((answer, model) => {
      if (!answer) return;
      const [text, , flipped, finish] = answer;
      const extra = [badge("", answer)];
      if (flipped) extra.push(element("span", "category", "judge flipped"));
      if (finish === "length") extra.push(element("span", "category", "cut at the length limit"));
      if (text.trim() === row.gold.trim()) extra.push(element("span", "category", "same as the ground truth"));
      cards.push(card(data.models[model], text, extra, outcomeOf(answer)));
    });
    const grid = element("div", "cards");
    grid.append(...cards);
    const meta = element("p", "note", [row.category, data.decodings[Number(controls.decoding.value)], row.id].filter(Boolean).join(" \u00b7 "));
    const prompt = card("Prompt", row.prompt, [], "prompt-card");
    byId("sample-body").replaceChildren(meta, prompt, grid);
    byId("sample-body").scrollTop = 0;
    byId("previous").disabled = position === 0;
    byId("next").disabled = position === found.length - 1;
    if (!byId("sample").open) {
      byId("sample").showModal();
      byId("sample-body").focus();
    }
  }

  function step(by) {
    const target = open + by;
    if (target < 0 || target >= found.length) return;
    openSample(target);
    if (document.activeElement === document.body || document.activeElement.disabled) byId("sample-body").focus();
  }

  function afterClose() {
    if (typing) {
      filter();
      controls.search.focus();
      return;
    }
    // The list follows, so that focus returns to the sample that was open last.
    if (Math.floor(open / PAGE) !== page) {
      page = Math.floor(open / PAGE);
      renderList();
    }
    byId("list").children[open - page * PAGE].firstElementChild.focus();
  }

  function turn(by) {
    page += by;
    renderList();
    byId("count").scrollIntoView({ block: "nearest" });
  }

  controls.search.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(filter, 120); });
  ["category", "decoding", "model", "verdict", "compare"].forEach((id) => controls[id].addEventListener("change", filter));
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => setTimeout(filter));
  byId("previous-page").addEventListener("click", () => turn(-1));
  byId("next-page").addEventListener("click", () => turn(1));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => byId("sample").close());
  byId("sample").addEventListener("close", afterClose);
  byId("sample").addEventListener("click", (event) => { if (event.target === byId("sample")) byId("sample").close(); });
  byId("sample").addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  filter();
}

startTheme();
if (byId("filters")) startSamples();
