import json

import pytest
import torch

from benchmarks import gpu


@pytest.mark.e2e
def test_tiny_models_run_on_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    gpu.main(["--tiny", "--device", "cpu", "--prompts", "4", "--batches", "1", "--out", str(out)])
    result = json.loads(out.read_text())
    assert set(result["ratios"]) == {f"{name}_{what}" for name in gpu.MODELS for what in ("mfu", "vs_padded")}
    assert result["ratios"]["gpt2-xl_vs_padded"]["value"] > 0
    assert result["ratios"]["gpt2-xl_mfu"]["value"] is None
    assert result["figures"]["openllama-3b"]["packed"]["tokens_per_second"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_exits_with_a_message(capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "no CUDA device" in capsys.readouterr().err
