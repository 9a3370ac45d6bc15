"""A reference whose architecture transformers does not know: its code is run on the user's word alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from inheritune.errors import Refused
from inheritune.reference import find
from inheritune.surgery import inherit
from tiny import TOKENS, content

CODE = {
    "configuration_own.py": """
from transformers import PretrainedConfig


class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(self, scales=(0.5, 0.25, 1.0, 2.0), **keywords):
        self.vocab_size, self.hidden_size, self.num_hidden_layers, self.scales = 64, 8, 4, list(scales)
        super().__init__(**{"tie_word_embeddings": False, **keywords})
""",
    "modeling_own.py": """
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_own import OwnConfig


class Block(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.scale, self.norm, self.mix = scale, nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, hidden_states):
        hidden_states += self.scale * self.mix(self.norm(hidden_states).cumsum(1))  # in place, as some do
        return hidden_states


class OwnForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        scales = config.scales[: config.num_hidden_layers]
        self.stages = nn.ModuleList(Block(config.hidden_size, scale) for scale in scales)
        self.last_norm = nn.LayerNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, **_):
        hidden_states = self.embedding(input_ids)
        for stage in self.stages:
            hidden_states = stage(hidden_states)
        return CausalLMOutput(logits=self.head(self.last_norm(hidden_states)))
""",
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A reference whose architecture transformers does not know."""
    directory = tmp_path / "own"
    directory.mkdir()
    for name, code in CODE.items():
        (directory / name).write_text(code)
    places = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (directory / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": places, "dtype": "float32"}))
    config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    save_file(model.state_dict(), directory / "model.safetensors", {"format": "pt"})
    return directory


def test_code_of_the_reference_is_not_run_unasked(own: Path, tmp_path: Path) -> None:
    (own / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + CODE["modeling_own.py"])
    with pytest.raises(Refused, match="code of its own"):
        find(str(own))
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


@pytest.mark.parametrize("indices", [(1, 3, 1), (0, 1)])
def test_code_of_the_reference_is_run_on_the_users_word_and_taken_along(
    indices: tuple[int, ...], own: Path, tmp_path: Path
) -> None:
    reference = find(str(own), trust_remote_code=True)
    record = inherit(reference, indices, tmp_path / "out", token_ids=TOKENS)
    assert [block["source"] for block in record["proof"]["blocks"]] == list(indices)
    for name, code in CODE.items():
        assert (tmp_path / "out" / name).read_text() == code
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM"
    assert model.config.scales == [reference.config.scales[index] for index in indices]
    shutil.rmtree(own)
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    again = AutoModelForCausalLM.from_pretrained(moved, trust_remote_code=True)
    assert content(again(TOKENS).logits) == content(model(TOKENS).logits)
