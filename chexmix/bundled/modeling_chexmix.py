"""The language model of CheXmix.

Written by chexmix 0.1.0 out of its modules core, model.
Research software, never for clinical use.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from safetensors import SafetensorError
from transformers import GenerationConfig
from transformers import LogitsProcessor
from transformers import LogitsProcessorList
from transformers import PhiConfig
from transformers import PhiForCausalLM
from transformers import PhiModel
from transformers import PhiPreTrainedModel
import math
import torch
import torch.nn.functional as F

class UserError(ValueError):
    "Something the user can put right: the message is one line that names the value and the way out."

    # Jupyter shows this line instead of the stack.
    def _render_traceback_(self): return [f'UserError: {self}']

@dataclass(frozen=True)
class Layout:
    "Ids of the mixed vocabulary: text `0…n_text-1`, image code k at `n_text+k`, then mask and pad."
    n_text: int       # text ids, specials included
    n_codes: int      # entries of the image codebook
    grid: int         # codes on each side of an image
    image_start: int  # `I_s`, also the target after the last text token
    image_end: int    # `I_e`
    text_start: int   # `T_s`, which is end-of-text too
    n_decodable: int = 0  # the first ids that stand for a text, before unused ones; 0 = all

    @property
    def mask(self): return self.n_text + self.n_codes
    @property
    def pad(self): return self.mask + 1
    @property
    def n_ids(self): return self.pad + 1
    @property
    def n_image(self): return self.grid**2  # codes of one image

def is_code(
    ids: torch.Tensor,  # any shape
    layout: Layout,
) -> torch.Tensor:  # bool, same shape
    "True where an id stands for an image code."
    return (ids >= layout.n_text) & (ids < layout.mask)

def write_code(*args, **kwargs): "Only in the package."

def is_text(
    ids: torch.Tensor,  # any shape
    layout: Layout,
) -> torch.Tensor:  # bool, same shape
    """True where an id is text that can be decoded, the counterpart of `is_code`.

    False for a code, `I_s`, `I_e`, `T_s`, mask, pad, −100, and for ids that only fill the vocabulary up."""
    specials = [layout.image_start, layout.image_end, layout.text_start]
    is_special = torch.isin(ids, torch.tensor(specials, device=ids.device))
    n_decodable = min(layout.n_text, layout.n_decodable or layout.n_text)
    return (ids >= 0) & (ids < n_decodable) & ~is_special

def rotary_share(
    head_size: int,  # width / heads
) -> float:
    "Share of a head's dimensions that is rotated: 0.4 as in Phi-2, rounded down to an even number."
    n_pairs = int(.4 * head_size) // 2
    return max(2, n_pairs * 2) / head_size

class ChexmixConfig(PhiConfig):
    "Phi over the mixed vocabulary. Without arguments: the released layout and Phi-2's sizes."
    model_type = 'chexmix'
    # names before version 0.2
    attribute_map = dict(both_ways='bidirectional', places='grid_embedding')
    n_text: int = 50_368          # fields of `Layout`
    n_codes: int = 8_192
    grid: int = 32
    image_start: int = 50_295
    image_end: int = 50_296
    text_start: int = 50_256
    n_decodable: int = 50_295
    hidden_size: int = 2_560      # fields of Phi, at Phi-2's values
    intermediate_size: int = 10_240
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    resid_pdrop: float = .1
    bidirectional: bool = False   # positions of an image see each other; not as released
    grid_embedding: bool = False  # codes are read with their row and column; not as released
    guidance: float = 1.          # of reports, see `apply_guidance`; 1 = none, as released
    images_a_study: int = 1       # most images before a report; as released

    @property
    def layout(self):
        return Layout(self.n_text, self.n_codes, self.grid, self.image_start, self.image_end,
                      self.text_start, self.n_decodable)

    def __post_init__(self, **kwargs):
        self.vocab_size, self.pad_token_id = self.layout.n_ids, self.layout.pad
        self.bos_token_id, self.eos_token_id = self.image_start, self.text_start
        head_size = self.hidden_size // self.num_attention_heads
        kwargs.setdefault('partial_rotary_factor', rotary_share(head_size))
        super().__post_init__(**kwargs)

def ids_since_start(
    input_ids: torch.Tensor,  # (B, T) ids to read now
    layout: Layout,
    before: torch.Tensor | None = None,  # (B,) of the id before them; None = there is none
) -> torch.Tensor:  # (B, T) 0 = `I_s`, 1…n = the codes after it, n+1 = anything else
    "How many ids ago an image began."
    position = torch.arange(input_ids.shape[1], device=input_ids.device)
    start = torch.where(input_ids == layout.image_start, position, -1).cummax(1).values  # the last; or -1
    outside = layout.n_image + 1
    before = outside if before is None else before[:, None]
    since = torch.where(start >= 0, position - start, position + 1 + before)
    return since.clamp(max=outside)

def in_same_image(
    input_ids: torch.Tensor,  # (B, T)
    layout: Layout,
) -> torch.Tensor:  # (B, T, T) bool
    "True where two positions belong to one image, `I_s` or one of its codes."
    position = torch.arange(input_ids.shape[1], device=input_ids.device)
    since = ids_since_start(input_ids, layout)
    began = torch.where(since <= layout.n_image, position - since, -1)  # (B, T) -1 = in no image
    return (began[:, :, None] == began[:, None]) & (began[:, :, None] >= 0)

def bidirectional_mask(
    input_ids: torch.Tensor,  # (B, T) ids to read now
    layout: Layout,
    attention_mask: torch.Tensor | None = None,  # (B, P+T), 1 = an id, 0 = a pad
    past: int = 0,            # P, ids that the cache holds
) -> torch.Tensor:  # (B, 1, T, P+T) bool, True = may be attended to
    "Causal attention, and attention in both directions between `I_s` and its codes."
    position = torch.arange(input_ids.shape[1], device=input_ids.device)
    visible = (position[:, None] >= position) | in_same_image(input_ids, layout)  # (B, T, T)
    visible = F.pad(visible, (past, 0), value=True)  # (B, T, P+T)
    if attention_mask is not None:
        itself = torch.eye(len(position), dtype=torch.bool, device=visible.device)  # a pad sees itself
        visible = visible & attention_mask[:, None].bool() | F.pad(itself, (past, 0))
    return visible[:, None]

class ChexmixModel(PhiModel):
    "Phi's decoder, with the switches `bidirectional` and `grid_embedding`."
    def __init__(self, config: ChexmixConfig):
        super().__init__(config)
        if config.hidden_act == 'gelu_new':
            for layer in self.layers: layer.mlp.activation_fn = torch.nn.GELU('tanh')
        if config.grid_embedding:  # one vector for each row, then one for each column
            self.grid_embedding = torch.nn.Embedding(2 * config.grid, config.hidden_size)

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs
    ):
        if self.config.bidirectional and input_ids is not None:
            attention_mask = self.open_images(input_ids, attention_mask, past_key_values)
        kwargs = dict(attention_mask=attention_mask, position_ids=position_ids,
                      past_key_values=past_key_values) | kwargs
        if not self.config.grid_embedding or input_ids is None:
            return super().forward(input_ids=input_ids, **kwargs)
        before = getattr(past_key_values, 'since', None)
        since = ids_since_start(input_ids, self.config.layout, before)
        kwargs['inputs_embeds'] = self.embed_ids(input_ids, since)
        output = super().forward(**kwargs)
        if output.past_key_values is not None:
            output.past_key_values.since = since[:, -1]  # for the ids that follow
        return output

    def embed_ids(
        self,
        input_ids: torch.Tensor,  # (B, T)
        since: torch.Tensor,      # (B, T) from `ids_since_start`
    ) -> torch.Tensor:  # (B, T, D)
        "Embeddings; at codes, masked or not, those of row and column are added."
        rows, columns = self.grid_embedding.weight.split(self.config.grid)  # (grid, D) each
        positions = (rows[:, None] + columns).flatten(0, 1)                 # (n, D)
        positions = F.pad(positions, (0, 0, 1, 1))                          # (n+2, D) zero outside the codes
        return self.embed_tokens(input_ids) + F.embedding(since, positions)

    def open_images(
        self,
        input_ids: torch.Tensor,  # (B, T) ids to read now
        attention_mask: torch.Tensor | None,  # (B, P+T), 1 = an id, 0 = a pad; of any other shape: kept
        past_key_values,          # cache of P ids, or None
    ) -> torch.Tensor | None:
        "The attention mask in which images see themselves in both directions."
        if attention_mask is not None and attention_mask.ndim != 2: return attention_mask
        if not bool((input_ids == self.config.image_start).any()): return attention_mask
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        return bidirectional_mask(input_ids, self.config.layout, attention_mask, past)

def may_follow(
    input_ids: torch.Tensor,  # (B, T) what has been read
    layout: Layout,
) -> torch.Tensor:  # (B, V) bool
    "Which ids may come next in a study: codes inside an image, then `I_e`; else text or what ends it."
    vocabulary = torch.arange(layout.n_ids, device=input_ids.device)
    ends = torch.isin(vocabulary, vocabulary.new_tensor([layout.image_start, layout.text_start]))
    text = is_text(vocabulary, layout) | ends  # (V,)
    since = ids_since_start(input_ids, layout)[:, -1:]  # (B, 1)
    follows = torch.where(since < layout.n_image, is_code(vocabulary, layout), text)
    follows = torch.where(since == layout.n_image, vocabulary == layout.image_end, follows)
    after_image = input_ids[:, -1:] == layout.image_end
    return torch.where(after_image, vocabulary == layout.text_start, follows)

class StudyGrammar(LogitsProcessor):
    "Leaves a generating model no choice but the ids that may follow."
    def __init__(self, layout: Layout): self.layout = layout

    def __call__(self, input_ids, scores):
        return scores.masked_fill(~may_follow(input_ids, self.layout), -torch.inf)

def apply_guidance(
    logits: torch.Tensor,  # (B, …); with guidance, the second half of the rows lacks the condition
    guidance: float,       # 1 = as predicted; more leans towards what the condition adds
) -> torch.Tensor:  # (B, …), or half of the rows
    """Classifier-free guidance: exaggerate the difference that the condition makes.

    Source: [Ho & Salimans](https://arxiv.org/abs/2207.12598)."""
    if guidance == 1: return logits
    conditional, unconditional = logits.chunk(2)
    return unconditional + guidance * (conditional - unconditional)

def guided_logits(
    logits: torch.Tensor,     # (B, K); with guidance, the second half lacks the condition
    forbidden: torch.Tensor,  # (K,) bool
    guidance: float,          # see `apply_guidance`
) -> torch.Tensor:  # (B, K), or half of the rows; -inf = cannot be chosen
    "Logits to choose from; with guidance, of ids at least a tenth as likely as the likeliest."
    if guidance != 1:
        conditional = logits.chunk(2)[0].masked_fill(forbidden, -torch.inf)
        forbidden = conditional < conditional.amax(1, keepdim=True) - math.log(10)
    return apply_guidance(logits, guidance).masked_fill(forbidden, -torch.inf)

class ImageGuidance(LogitsProcessor):
    "Guides the reports of a generating model by their images; greedy, sampled or by beams."
    def __init__(
        self,
        model: PhiForCausalLM,
        guidance: float,  # see `apply_guidance`
    ): self.model, self.guidance, self.ids, self.cache = model, guidance, None, None

    def unconditional_logits(self, input_ids):
        "(B, V) logits after the same ids with every code masked."
        layout = self.model.config.layout
        ids = input_ids.masked_fill(is_code(input_ids, layout), layout.mask)  # (B, T)
        goes_on = self.cache is not None and torch.equal(ids[:, :-1], self.ids)  # beams change places
        new, past = (ids[:, -1:], self.cache) if goes_on else (ids, None)
        output = self.model.model(new, past_key_values=past, use_cache=True)
        self.ids, self.cache = ids, output.past_key_values
        return self.model.lm_head(output.last_hidden_state[:, -1]).float()

    def __call__(self, input_ids, scores):
        logits = torch.cat([scores, self.unconditional_logits(input_ids)])
        return guided_logits(logits, torch.isneginf(scores), self.guidance)

def study_generation(config: ChexmixConfig) -> GenerationConfig:
    "Where generation ends: at what closes a report or an image, or with the context. Greedy."
    return GenerationConfig(
        bos_token_id=config.image_start, pad_token_id=config.pad_token_id, min_new_tokens=5,
        eos_token_id=[config.image_start, config.text_start, config.image_end],
        max_length=config.max_position_embeddings)

def check_loading(
    folder,      # where the weights came from
    info: dict,  # `missing_keys`, `unexpected_keys` and `mismatched_keys` of transformers
):
    "Raises `UserError` where a weight was missing, unexpected or of another shape."
    faults = {
        'missing': info['missing_keys'],
        'unexpected': info['unexpected_keys'],
        'of another shape': {key for key, *_ in info['mismatched_keys']}}
    for fault, keys in faults.items():
        if not keys: continue
        names = ', '.join(sorted(keys)[:3])
        raise UserError(f'{folder}: {len(keys)} weights {fault} ({names}…): '
                        'these weights belong to another model; use the folder as it was saved')

class ChexmixForCausalLM(PhiForCausalLM):
    "Phi over the mixed vocabulary; the same parameter names as `PhiForCausalLM`."
    config_class = ChexmixConfig

    def __init__(self, config: ChexmixConfig):
        PhiPreTrainedModel.__init__(self, config)
        self.model, self.vocab_size = ChexmixModel(config), config.vocab_size
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()
        self.generation_config = study_generation(config)

    @classmethod
    def from_pretrained(
        cls,
        folder,    # weights folder, or a name on the hub
        *args,
        **kwargs,  # as transformers takes them
    ) -> 'ChexmixForCausalLM':
        """The model in `folder`, in evaluation mode.

        Raises `UserError` where it cannot be read, or `check_loading` finds a fault."""
        old_names = {r'^model\.places\.': 'model.grid_embedding.'}  # before version 0.2
        kwargs.update(output_loading_info=True, ignore_mismatched_sizes=True, key_mapping=old_names)
        try: model, info = super().from_pretrained(folder, *args, **kwargs)
        except (OSError, SafetensorError) as e:
            raise UserError(f'no model at {folder}: name a folder that pretraining wrote '
                            '(it holds config.json and model.safetensors)') from e
        check_loading(folder, info)
        ends = model.generation_config.eos_token_id
        if not isinstance(ends, list): model.generation_config = study_generation(model.config)  # before 0.2
        return model

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        **kwargs,
    ) -> torch.nn.Embedding:
        "The input embeddings as they are. Raises `UserError` for any other size."
        n_ids = self.config.vocab_size
        if new_num_tokens in (None, n_ids) and n_ids % (pad_to_multiple_of or 1) == 0:
            return self.get_input_embeddings()
        raise UserError(f'the vocabulary has {n_ids} ids, as its layout says, and cannot be resized: for '
                        'other words start a model from another layout (`chexmix tokenizer --set n_text=…`)')

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,  # (B, T) ids, or as `input_ids`; padded on the left
        guidance: float | None = None,       # see `apply_guidance`; None = as configured
        logits_processor=None,
        **options,                           # as transformers takes them
    ):
        """Prompts and what follows them, (B, T + new) ids; text after `T_s`, one image after `I_s`.

        Raises `UserError` for a prompt that cannot be continued."""
        if inputs is None: inputs = options.pop('input_ids', None)
        if inputs is None: raise UserError('generate needs input_ids: make them with the processor')
        check_prompt(inputs, self.config)
        layout, room = self.config.layout, self.config.max_position_embeddings - inputs.shape[1]
        if options.get('max_new_tokens'):  # as a length of all, which transformers does not warn of
            most = min(options.pop('max_new_tokens'), room)
            options['max_length'] = inputs.shape[1] + most
            options.setdefault('min_new_tokens', min(most, 5))
        if options.get('attention_mask') is None: options['attention_mask'] = (inputs != layout.pad).long()
        if guidance is None: guidance = self.config.guidance
        processors = [StudyGrammar(layout), *(logits_processor or [])]
        writes_report = is_code(inputs, layout).any() and not (inputs[:, -1] == layout.image_start).any()
        if guidance != 1 and writes_report: processors.append(ImageGuidance(self, guidance))
        processors = LogitsProcessorList(processors)
        return PhiForCausalLM.generate(self, inputs, logits_processor=processors, **options)

    def save_pretrained(
        self,
        folder,    # made where it does not exist
        **kwargs,  # as transformers takes them
    ):
        "Write weights, configuration, settings of generation, and the code that opens them."
        self.config.auto_map = dict(MODEL_CLASSES)
        push = kwargs.pop('push_to_hub', False)
        PhiForCausalLM.save_pretrained(self, folder, **kwargs)
        write_code(folder, MODEL_FILE, title='The language model of CheXmix.',
                   roots=(('model', 'ChexmixForCausalLM'),), without=('write_code',))
        if push: self.push_to_hub(kwargs.get('repo_id') or Path(folder).name, token=kwargs.get('token'))

def check_images(
    n_images: int,  # of a study
    config: PhiConfig,
):
    "Raise `UserError` for a study of more images than the model knows."
    most = getattr(config, 'images_a_study', 1)
    if n_images <= most: return
    advice = 'a frontal and a lateral one' if most > 1 else 'or train one with --set images_a_study=2'
    raise UserError(f'this model reads {most} image{"s" * (most > 1)} a study, and is given {n_images}: '
                    f'give it {most}, {advice}')

def check_prompt(
    prompt: torch.Tensor,  # (B, T)
    config: ChexmixConfig,
):
    "Raise `UserError` for a prompt that cannot be continued."
    context, layout = config.max_position_embeddings, config.layout
    outside = prompt[(prompt < 0) | (prompt >= layout.n_ids)]
    if len(outside):
        raise UserError(f'id {int(outside[0])} is outside the vocabulary 0…{layout.n_ids - 1}: '
                        'was the prompt made with another processor?')
    if (prompt[:, -1] == layout.pad).any():
        raise UserError('the prompt is padded on the right: pad it on the left, as the processor does')
    if prompt.shape[1] >= context:
        raise UserError(f'a prompt of {prompt.shape[1]} ids fills the context of {context}: shorten it')
    check_images(int((prompt == layout.image_end).sum(1).max()), config)
    if config.bidirectional and (prompt[:, -1] == layout.image_start).any():
        raise UserError('this model fills an image in rounds: use generate_images of chexmix.generate')

MODEL_FILE = 'modeling_chexmix'

MODEL_CLASSES = dict(
    AutoConfig=f'{MODEL_FILE}.ChexmixConfig', AutoModelForCausalLM=f'{MODEL_FILE}.ChexmixForCausalLM')
