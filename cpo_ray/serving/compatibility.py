"""Check that two models are compatible, so that their weights can be averaged or swapped in one engine."""

from pathlib import Path

from cpo_ray.errors import ArtifactError
from cpo_ray.serving.comparison import Differences
from cpo_ray.serving.config_comparison import compare_configs
from cpo_ray.serving.safetensors_files import FLOATS, StoredTensor, read_tensors
from cpo_ray.serving.tied_weights import explain_unequal, find_copies
from cpo_ray.serving.tokenizer_comparison import compare_tokenizers

LISTED = 10


def check_compatible(
    model: Path, other: Path, purpose: str, any_dtype: bool = False, dtype_remedy: str = ""
) -> Differences:
    """Raise ArtifactError with the first ten differences in tokenizer, config, tensor names, shapes and dtypes.

    `purpose` completes the message "A and B cannot ...". Tensor values are not compared, except those of a tied LM head that
    is stored too. `any_dtype` accepts different floating-point dtypes; otherwise `dtype_remedy` is added if there are no
    other differences. Returns the differences that remain: those that change nothing, and dtypes.
    """
    found = Differences()
    found.add(compare_tokenizers(model, other))
    found.add(compare_configs(model, other))
    found.add(_compare_tensors(model, read_tensors(model), other, read_tensors(other)))
    accepted = set(found.dtypes) if any_dtype else set()
    differences = [text for text in found.refused if text not in accepted]
    if differences:
        lines = "\n".join(f"  {difference}" for difference in differences[:LISTED])
        first = f", the first {LISTED}" if len(differences) > LISTED else ""
        count = f"{len(differences)} difference{'s' if len(differences) > 1 else ''}"
        remedy = f"\n{dtype_remedy}" if dtype_remedy and len(found.dtypes) == len(found.refused) else ""
        raise ArtifactError(f"{model} and {other} cannot {purpose}; {count}{first}:\n{lines}{remedy}")
    return found


def _compare_tensors(
    model: Path, tensors: dict[str, StoredTensor], other: Path, others: dict[str, StoredTensor]
) -> Differences:
    found = Differences()
    for folder, stored in ((model, tensors), (other, others)):
        for copy, source in find_copies(folder, stored).items():
            found.copies[copy] = source
            if (reason := explain_unequal(folder, stored[copy], stored[source], (copy, source))) is not None:
                found.refused.append(reason)
    for name in sorted(tensors.keys() ^ others.keys()):
        text = f"{name}: only in {model if name in tensors else other}"
        source = found.copies.get(name, "")
        if source in tensors and source in others:
            found.change_nothing.append(f"{text.replace(':', '', 1)}, equal to {source} and tied to it")
        else:
            found.refused.append(text)
    for name in sorted(tensors.keys() & others.keys()):
        _compare_tensor(name, (model, tensors[name]), (other, others[name]), found)
    return found


def _compare_tensor(
    name: str, ours: tuple[Path, StoredTensor], theirs: tuple[Path, StoredTensor], found: Differences
) -> None:
    (model, left), (other, right) = ours, theirs
    if left.shape != right.shape:
        found.refused.append(f"{name}: shape {list(left.shape)} in {model}, {list(right.shape)} in {other}")
    if left.dtype != right.dtype:
        found.refused.append(f"{name}: dtype {left.dtype} in {model}, {right.dtype} in {other}")
        if left.dtype in FLOATS and right.dtype in FLOATS:
            found.dtypes.append(found.refused[-1])
