"""Whatever is asked wrongly is answered in one line: what was asked, what was found, what to do. And nothing is made of it."""

import json
import sys
from pathlib import Path

import broken
import pytest

from limbeck import cli


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("home")
    broken.fill(made)
    return made


def distill(method: str, *settings: str, **given: str) -> list[str]:
    """A command on the toys, with these settings."""
    given = {"teacher": "teacher", "student": "student", "data": "train.jsonl", "prompts": "train.jsonl", "reward": "mine:length"} | given
    takes = {"kd": "teacher student data", "on_policy": "teacher student prompts", "gkd": "teacher student prompts data",
             "gkd_rl": "teacher student prompts reward"}[method].split()  # fmt: skip
    named = [word for name in takes for word in (f"--{name}", given[name])]
    return ["distill", method, *named, *(word for setting in ("steps=1", *settings) for word in ("--set", setting))]


def kd(*settings: str, **given: str) -> list[str]:
    return distill("kd", *settings, **given)


def own(*settings: str, **given: str) -> list[str]:
    return distill("on_policy", *settings, **given)


def judged(function: str) -> list[str]:
    return distill("gkd_rl", "source.sampling.max_tokens=4", "source.group=2", reward=function)


def adamw(setting: str) -> list[str]:
    return kd(f"student.optimizer.{setting}")


def sampling(setting: str) -> list[str]:
    return own(f"source.sampling.{setting}")


def data(settings: str) -> list[str]:
    return kd(f"source.data=[{{{settings}}}]")


def heldout(settings: str) -> list[str]:
    return kd(f"evaluations=[{{type: Likelihood, {settings}}}]")


def wrote(function: str) -> list[str]:
    return kd(f"source={{type: CustomSource, function: '{function}'}}")


def term(function: str) -> list[str]:
    return kd(f"objective={{type: CustomTerm, function: '{function}'}}")


def evaluate(options: str) -> list[str]:
    return ["evaluate", *options.split()]


# fmt: off
CASES: dict[str, dict[str, tuple[list[str], str]]] = {
    "yaml": {
        "missing": (["distill", "nothing.yaml"], "there is no recipe file nothing.yaml; give a YAML file or a method's name"),
        "folder": (["distill", "folder.yaml"], "there is no recipe file folder.yaml; give a YAML file"),
        "empty": (["distill", "empty.yaml"], "empty.yaml is empty; a recipe needs at least a student and a source"),
        "binary": (["distill", "binary.yaml"], "binary.yaml: not UTF-8 at byte 0; save the file as UTF-8"),
        "tabs": (["distill", "tabs.yaml"], r"tabs.yaml, line 2: no YAML (found character '\t' that cannot start any token); indent with spaces"),
        "twice": (["distill", "twice.yaml"], 'twice.yaml, line 3: "student" is given twice, first in line 1; keep one'),
        "list": (["distill", "list.yaml"], "list.yaml holds a list where a mapping of settings was expected; write them as name: value"),
        "open": (["distill", "open.yaml"], "open.yaml, line 2: no YAML"),
        "code": (["distill", "python.yaml"], "python.yaml, line 1: no YAML (the tag '!!python/object/apply:os.system' is unknown)"),
        "key": (["distill", "typo.yaml"], 'typo.yaml, line 1: Recipe has no setting "studnet"; did you mean "student"?'),
        "deep key": (["distill", "deep.yaml"], 'deep.yaml, line 6: Data has no setting "wieght"; did you mean "weight"?'),
    },
    "command": {
        "method": (["distill", "gdk"], 'there is no method "gdk"; did you mean "gkd"? A recipe is a YAML file'),
        "file and method": (["distill", "typo.yaml", "--data", "x"], "--data goes with a method"),
        "needs": (["distill", "kd", "--student", "student", "--data", "train.jsonl"], "kd needs --teacher"),
        "takes": (["distill", "sft", "--student", "a", "--data", "b", "--teacher", "c"], "sft takes no --teacher; it takes --student, --data"),
        "set": (kd("steps"), 'cannot read the override "steps"; write it like objective.temperature=2'),
        "set below": (kd("steps.x=1"), 'cannot set steps.x: "x" stands below 1, which has no settings'),
        "out is a file": ([*kd(), "--out", "notes.txt"], "cannot write to notes.txt (File exists); give another --out"),
        "out below a file": ([*kd(), "--out", "notes.txt/run"], "cannot write to notes.txt/run (Not a directory); give another --out"),
    },
    "key": {
        "objective": (kd("objective.temprature=2"), 'ForwardKL has no setting "temprature"; did you mean "temperature"?'),
        "optimizer": (adamw("learning_rat=2"), 'AdamW has no setting "learning_rat"; did you mean "learning_rate"?'),
        "sampling": (sampling("top_n=2"), 'Sampling has no setting "top_n"; did you mean "top_p"?'),
        "adapters": (kd("student.lora.rnk=2"), 'LoRA has no setting "rnk"; did you mean "rank"?'),
        "evaluation": (heldout("data: train.jsonl, row: 1"), 'Likelihood has no setting "row"; did you mean "rows"?'),
        "name": (kd("objective=ReversKL"), 'there is no Part "ReversKL"; did you mean "ReverseKL"?'),
        "kind": (kd("teacher=Corpus('train.jsonl')"), "a Teacher was asked for, found Corpus("),
        "typeless": (kd("source={sequences: 4}"), "a Source needs its type; one of: Corpus, Curriculum, CustomSource, Interleaved, Masked, Mix, "),
    },
    "type": {
        "word": (kd("steps=many"), "Recipe.steps: input should be a valid integer, unable to parse string as an integer, found 'many'"),
        "fraction": (kd("steps=1.5"), "Recipe.steps: input should be a valid integer, got a number with a fractional part, found 1.5"),
        "rate": (adamw("learning_rate=fast"), "AdamW.learning_rate: input should be a valid number"),
        "choice": (kd("keep=worst"), "Recipe.keep: input should be 'last' or 'best', found 'worst'"),
        "dtype": (kd("student.dtype=float16"), "Student.dtype: input should be 'auto', 'float32' or 'bfloat16', found 'float16'"),
        "tracker": (kd("trackers=[notebook]"), "Recipe.trackers.0: input should be 'tensorboard', 'wandb', 'trackio' or 'mlflow', found 'notebook'"),
        "targets": (kd("student.lora.targets=5"), "LoRA.targets.list[str]: input should be a valid list, found 5"),
        "student": (kd("student=null"), "Recipe.student: input should be a dictionary or an instance of Student, found None"),
        "source": (kd("source=null"), "a Source was asked for, found None; one of: Corpus"),
        "evaluations": (kd("evaluations=5"), "Recipe.evaluations: input should be a valid list, found 5"),
    },
    "number": {
        **{f"{x} 0": (kd(f"{x}=0"), f"{x} must be at least 1, found 0")
           for x in ("steps", "tokens_per_pass", "keep_last", "evaluate_every", "save_every", "early_stop")},
        **{f"time {x}": (kd(f"time_limit_minutes={x}"), "time_limit_minutes must be above 0 and finite, or null, found") for x in ("-1", ".nan")},
        **{f"weight {x}": (kd(f"objective.weight={x}"), "ForwardKL.weight must be finite, found") for x in (".nan", ".inf")},
        "seed": (kd("seed=-1"), "seed must lie between 0 and 2^63, found -1"),
        **{f"rate {x}": (adamw(f"learning_rate={x}"), "learning_rate must be above 0 and finite, found") for x in ("-1", ".nan", ".inf")},
        **{f"warmup {x}": (adamw(f"warmup={x}"), "warmup is a share of the steps, from 0 to below 1, found") for x in ("1", ".nan")},
        **{f"clip {x}": (adamw(f"clip={x}"), "clip must be above 0 and finite, or null, found") for x in ("0", "-1", ".nan", ".inf")},
        **{f"decay {x}": (adamw(f"weight_decay={x}"), "weight_decay must be at least 0 and finite, found") for x in ("-1", ".nan", ".inf")},
        **{f"beta {x}": (adamw(f"beta_1={x}"), "beta_1 and beta_2 must lie from 0 to below 1, found") for x in ("1", ".nan")},
        **{f"epsilon {x}": (adamw(f"epsilon={x}"), "epsilon must be above 0 and finite, found") for x in ("0", ".nan")},
        **{f"temperature {x}": (kd(f"objective.temperature={x}"), "ForwardKL.temperature must be above 0, found") for x in ("0", ".inf", ".nan")},
        **{f"sampling {x}": (sampling(x), "sampling needs a finite temperature >= 0, 0 < top_p <= 1, 0 <= min_p <= 1 and top_k >= 1, found")
           for x in ("temperature=-1", "temperature=.nan", "temperature=.inf", "top_p=0", "top_p=.nan", "top_k=0", "min_p=.nan")},
        "adapters": (kd("student.lora.rank=0"), "adapters need a rank and an alpha of at least 1, found 0 and 32"),
        "alpha": (kd("student.lora.alpha=0"), "adapters need a rank and an alpha of at least 1, found 16 and 0"),
        "skew": (kd("objective={type: SkewKL, skew: .nan}"), "SkewKL.skew must lie between 0 and 1, found nan"),
        "max_tokens": (sampling("max_tokens=0"), "max_tokens must be at least 1, found 0"),
        "group": (own("source.group=0"), "a source needs at least one sequence, token and answer; found 16, 1024 and 0"),
        "sequences": (kd("source.sequences=0"), "a source needs at least one sequence, token and answer; found 0, 1024 and 1"),
        "keep_above": (distill("gkd_rl", "source.keep_above=.nan"), "OnPolicy.keep_above must be finite, found nan; null keeps every answer"),
        **{f"fraction {x}": (distill("gkd", f"source.fraction={x}"), "Mix.fraction is a probability, found") for x in ("2", ".nan")},
        "no share": (data("path: train.jsonl, weight: 0"), "train.jsonl: a weight of 0.0 would never be drawn; give one above 0"),
        **{f"share {x}": (data(f"path: train.jsonl, weight: {x}"), "is no share of anything; give one above 0") for x in (".nan", ".inf")},
        **{f"heldout {x}": (heldout(f"data: train.jsonl, {x}"), "evaluation heldout: rows, max_tokens and tokens_per_pass must be at least 1")
           for x in ("rows: 0", "max_tokens: 0", "tokens_per_pass: -1", "samples: -1")},
    },
    "refused": {
        "nothing said": (kd("teacher=Silent"), "ForwardKL needs a teacher that says distribution or sampled or top k; Silent says nothing; give"),
        "others' words": (kd("objective=PolicyGradient"), "PolicyGradient is only right on the student's own tokens; draw them with OnPolicy(...)"),
        "no credit": (own("objective=PolicyGradient"), "PolicyGradient needs credit; give the source a reward: OnPolicy(reward="),
        "unchosen": (own("objective=CrossEntropy"), "CrossEntropy on the student's own unchosen words teaches nothing; let a teacher score them"),
        "zero credit": (own("source.reward=mine:length"), 'gives every answer zero credit; set group >= 2 or baseline="running"'),
        "no judge": (own("source.keep_above=1"), "needs a reward to compare with; give reward: Number(), or module:function"),
        "JSD 0": (kd("objective=JSD(0)"), "the formula vanishes at 0 and 1 and means nothing outside; use ForwardKL()"),
        "JSD 1": (kd("objective=JSD(1)"), "use ReverseKL()"),
        "itself": (kd(teacher="student"), "the teacher student is the student itself and says the same, so ForwardKL has no gradient; name"),
        "no adapters": (kd(teacher="@student"), "it has none: it would say the same; name another model"),
        "nobody's": (kd("objective.writer=student"), 'ForwardKL@student counts the tokens of "student", and Corpus draws those of corpus'),
        "writer": (kd("objective.writer=author"), "tokens are written by one of corpus, teacher, student"),
        "two of a name": (kd("objective=ForwardKL() + ForwardKL(temperature=2)"), "cannot be read in metrics: ForwardKL, ForwardKL; add"),
        "no terms": (kd("objective=[]"), "an objective needs a term; start with ForwardKL()"),
        "best of none": (kd("keep=best"), "keeping the best and stopping early need evaluations and evaluate_every; give both"),
        "4 bits": (kd("student.quantization=4bit"), "4bit weights cannot be trained; put adapters on them: lora: {rank: 16}"),
        "no prompts": (["distill", "gkd", *["--teacher", "teacher", "--student", "student", "--data", "train.jsonl"]], "gkd needs prompts"),
    },
    "data": {
        **{path: (kd(data=path), f"there is no file {path}; give a JSONL or Parquet file, or a name on the hub")
           for path in ("nothing.jsonl", "/nowhere/nothing.parquet", "~/nowhere/nothing.jsonl")},
        "hub": ([*kd(data="nobody/nothing"), "--accept-license", "unknown licence of nobody/nothing"], "cannot read nobody/nothing: "),
        "folder": (kd(data="folder"), "cannot read folder: "),
        "other file": (kd(data="notes.txt"), "notes.txt is a file of a kind that is not read; give JSONL or Parquet"),
        "damaged": (kd(data="broken.parquet"), "cannot read broken.parquet: Parquet magic bytes not found"),
        "split": (data("path: saved, split: tset"), 'cannot read saved: it has no split "tset"; known: train'),
        "none": (kd("source.data=[]"), "no data was given; name a file, such as prompts.jsonl"),
        "empty": (kd(data="empty.jsonl"), "empty.jsonl holds no rows; give it at least one"),
        "empty stream": (data("path: empty.jsonl, streaming: true"), "empty.jsonl holds no rows; give it at least one"),
        "no JSON": (kd(data="broken.jsonl"), "broken.jsonl, line 2: no JSON (Expecting ':' delimiter at column 10); write one object a line"),
        "streamed no JSON": (data("path: broken.jsonl, streaming: true"), "broken.jsonl, line 2: no JSON"),
        "no object": (kd(data="number.jsonl"), 'number.jsonl, line 2: found int, expected an object such as {"prompt": "..."}'),
        "not UTF-8": (kd(data="latin.jsonl"), "latin.jsonl, line 2: not UTF-8 at byte 12; save the file as UTF-8"),
        "columns": (kd(data="other.jsonl"), "other.jsonl: found columns question; rows need one of messages, conversations, prompt"),
        "later columns": (kd(data="later.jsonl"), "later.jsonl: a row has columns question; rows need text, prompt, messages"),
        "later prompt": (own(prompts="later.jsonl"), "later.jsonl: a prompt was asked for, found columns question; give prompt or messages"),
        "no completion": (kd(data="unpaired.jsonl"), "unpaired.jsonl: a prompt without a completion; add the column"),
        "no prompt": (kd(data="answer.jsonl"), "answer.jsonl: found columns completion; rows need one of"),
        "no text": (kd(data="listed.jsonl"), "listed.jsonl: prompt must be text, found list; put dialogues into messages"),
        "prompt no text": (own(prompts="listed.jsonl"), "listed.jsonl: prompt must be text, found list; put dialogues into messages"),
        "answer no text": (kd(data="mapped.jsonl"), "mapped.jsonl: completion must be text, found dict; put dialogues into messages"),
        "no role": (kd(data="roleless.jsonl"), "roleless.jsonl: messages must be a list of turns, each with role, found"),
        "role": (kd(data="wizard.jsonl", student="strict"), "wizard.jsonl: the chat template refuses a dialogue: no wizards"),
        "wordless": (kd(data="wordless.jsonl"), "wordless.jsonl: turn 1 of messages says nothing; give it content, or leave it out"),
        "no turns": (kd(data="turnless.jsonl"), "turnless.jsonl: a dialogue without an assistant turn after another's has no completion; add one"),
        "nothing asked": (own(prompts="turnless.jsonl"), "turnless.jsonl: a dialogue without a turn before the answer; give it one"),
        "no list": (kd(data="spoken.jsonl"), "spoken.jsonl: messages must be a list of turns, each with role, found 'hello'"),
        "monologue": (kd(data="monologue.jsonl"), "monologue.jsonl: a dialogue without an assistant turn after another's has no completion"),
        "own monologue": (own(prompts="monologue.jsonl"), "monologue.jsonl: a dialogue without a turn before the answer; give it one"),
        "unanswered": (kd(data="unanswered.jsonl"), "unanswered.jsonl: a dialogue without an assistant turn"),
        "speaker": (own(prompts="narrated.jsonl"), 'narrated.jsonl: a conversation turn is from "narrator"; known: human, user, gpt'),
        "half": (kd(data="half.jsonl"), "half.jsonl: prompt_ids without completion_ids; add the column, or let a model write"),
        "negative token": (kd(data="negative.jsonl"), "negative.jsonl: prompt_ids holds -2, and the vocabulary has 258 tokens, 0 to 257; take"),
        "negative prompt": (own(prompts="negative.jsonl"), "negative.jsonl: prompt_ids holds -2, and the vocabulary has 258 tokens"),
        "padding token": (kd(data="large.jsonl"), "large.jsonl: completion_ids holds 258, and the vocabulary has 258 tokens, 0 to 257"),
        "huge token": (kd(data="huge.jsonl"), "and the vocabulary has 258 tokens"),
        "text for tokens": (kd(data="words.jsonl"), "words.jsonl: prompt_ids must be a list of whole numbers, found"),
        "one token": (own(prompts="single.jsonl"), "single.jsonl: prompt_ids must be a list of whole numbers, found '5'"),
        "few numbers": (kd(data="logp.jsonl"), "logp.jsonl: completion_logp has 1 numbers for 2 completion_ids; give one for each"),
        "no numbers": (kd(data="logp_words.jsonl"), "logp_words.jsonl: completion_logp must be a list of numbers, found"),
        "long": (own(prompts="long.jsonl"), "nothing to learn from; left out 16 rows (prompts longer than max_prompt=1024 or the student's context)"),
        "max_prompt": (own("source.max_prompt=2"), "nothing to learn from; left out 16 rows (prompts longer than max_prompt=2"),
        "masked": (kd(data="masked.jsonl"), "nothing to learn from; left out 16 rows (no completion within max_tokens=1024 or the"),
        "max_tokens": (kd("source.max_tokens=2"), "nothing to learn from; left out 16 rows (no completion within max_tokens=2"),
        "blank": (data("path: blank.jsonl, template: plain"), "blank.jsonl: a prompt without a token: nothing predicts the first token"),
        "tools": (kd(data="tools.jsonl"), "tools.jsonl: tools is a string and no JSON"),
        "template's own": (data("path: train.jsonl, template_arguments: {messages: 1}"), "template_arguments names messages, which is given"),
        "heldout": (heldout("data: train.jsonl, max_tokens: 2"), "evaluation heldout: no row has a completion within 2 tokens; raise max_tokens"),
        "heldout context": (heldout("data: long.jsonl"), "evaluation heldout: no row has a completion within 256 tokens"),
        "own heldout": (heldout("data: long.jsonl, own_text: true"), "evaluation heldout: no prompt is within 255 tokens; raise max_tokens"),
    },
    "model": {
        **{path: (kd(teacher=path), f"there is no folder {path}; give a folder") for path in ("./nobody", "/nowhere/nobody", "~/nobody")},
        "GGUF": (kd(teacher="nothing.gguf"), "there is no GGUF file nothing.gguf; give a folder"),
        "hub": (
            [*kd(teacher="nobody/nothing"), "--accept-license", "unknown licence of nobody/nothing"],
            "there is no such folder here, and the hub did not give it: ",
        ),
        "licence": (kd(teacher="nobody/nothing"), "no licence of it was found: there is no such folder, and the hub did not answer"),
        "file": (kd(teacher="notes.txt"), "notes.txt is a file, and no model; give a folder"),
        "nameless": (kd(teacher=""), "a model without a name was asked for; give a folder"),
        "folder": (kd(teacher="folder"), "folder holds no model, for there is no config.json in it; give a folder"),
        "no config": (kd(student="no_config"), "no_config holds no model, for there is no config.json in it"),
        "bad config": (kd(student="bad_config"), "'bad_config/config.json' is not a valid JSON file; mend it, or fetch the model anew"),
        "list config": (kd(student="list_config"), "must be a mapping, not list; mend it, or fetch the model anew"),
        "no tokenizer": (kd(student="no_tokenizer"), "no_tokenizer holds no tokenizer that can be read; save the model's own into it"),
        "bad tokenizer": (kd(student="bad_tokenizer"), "cannot open the tokenizer of bad_tokenizer: "),
        "type": (kd(student="nonsense"), "does not recognize this architecture; update transformers, or give another model"),
        "uneven": (kd(student="uneven"), "The hidden size (16) is not a multiple of the number of attention heads (3); mend it"),
        **{name: (kd(student=name), f"a weights file of {name} is cut short or damaged (") for name in ("cut", "hollow", "noise")},
        "bare": (kd(student="bare"), "lm_head.weight is missing, model.embed_tokens.weight is missing, and 10 more; mend it"),
        "some": (kd(student="some"), "the weights of some are not those of its config.json: model.layers.0.self_attn.q_proj.weight is missing; mend"),
        "renamed": (kd(student="renamed"), "the weights of renamed are not those of its config.json: lm_head.weight is missing"),
        "deep": (kd(student="deep"), "model.layers.1.input_layernorm.weight is missing, model.layers.1.mlp.down_proj.weight is missing, and 7 more"),
        "wide": (kd(student="wide"), "lm_head.weight is [272, 16] in its files and [272, 32] by its config.json"),
        "pickle": (kd(student="pickled"), "pickled has no safetensors weights, and pickles are never read; convert it with save_pretrained"),
        "weightless": (kd(student="weightless"), "weightless has no safetensors weights; give a folder"),
        "no GGUF": (kd(teacher="none.gguf"), "none.gguf is cut short or no GGUF file ("),
        "cut GGUF": (kd(teacher="cut.gguf"), "cut.gguf is cut short or no GGUF file ("),
        "own code": (kd(student="remote"), "the model of remote runs code of its own; read it, then set trust_remote_code: true"),
        "short head": (kd(student="short"), "short scores 200 tokens and its tokenizer knows 258; resize its embeddings"),
        "masked": (kd(student="bert"), "the tokenizer of a masked model has no mask token; give it one: tokenizer.mask_token"),
        "no start": (kd(student="t5"), "t5 does not say what its decoder begins with; set decoder_start_token_id in its config.json"),
        "attention": (kd("student.attention=nonsense"), '`attn_implementation="nonsense"` is not supported; drop its attention'),
        "vocabulary": (kd(student="swapped"), "the vocabularies of student and teacher differ in 2 of 258 tokens ("),
        "template": (kd(student="tight"), "the chat templates differ: @@ -2 +2,2 @@ | -What is 2 + 2?<|im_end|><|im_start|>assistant |"),
        "raising template": (kd(student="raising"), "the chat template refuses a dialogue: no such role"),
        "unclosed template": (kd(student="unclosed"), "the chat template refuses a dialogue: Unexpected end of template"),
        "no template": (kd("source.data=[{path: train.jsonl, template: chat}]", student="plain", teacher="plain_teacher"),
                        "the rows are dialogues, and this tokenizer has no chat template; give a model that has one"),
        "targets": (kd("student.lora.targets=[nothing]"), "Target modules {'nothing'} not found in the base model"),
        "adapters": (kd("student.lora.options={r: 1}"), "multiple values for keyword argument 'r'; change lora.targets or lora.options"),
    },
    "function": {
        "module": (judged("nowhere:f"), "cannot import \"nowhere:f\": No module named 'nowhere'; the module must lie in the working folder"),
        "attribute": (judged("mine:size"), "cannot import \"mine:size\": module 'mine' has no attribute 'size'"),
        "spelling": (judged("mine"), 'there is no Part "mine"'),
        "syntax": (judged("syntax:f"), 'cannot import "syntax:f": it raised SyntaxError: '),
        "raising module": (judged("raising:f"), 'cannot import "raising:f": it raised ZeroDivisionError: division by zero; mend the module'),
        "no function": (judged("mine:number"), '"mine:number" is no function; a verifier is called with (completion, row) and returns a number'),
        "divides": (judged("mine:divides"), "mine:divides raised ZeroDivisionError in line 5: division by zero; mend it, or name another"),
        "two lines": (judged("mine:raises"), "mine:raises raised RuntimeError in line 14: of my own; mend it, or name another"),
        "arguments": (judged("mine:few"), "mine:few raised TypeError: few() takes 1 positional argument but 2 were given; mend it"),
        **{f"gives {x}": (judged(f"mine:{x}"), "for a completion; return a finite number") for x in ("nan", "word", "nothing")},
        "term's shape": (term("mine:scalar"), "mine:scalar gave shape () for"),
        "term's number": (term("mine:no_number"), "is nan"),
        "term's list": (term("mine:listed"), "mine:listed gave list for"),
        "term's graph": (term("mine:apart"), "mine:apart gave nats that do not depend on log_q; compute them of it"),
        "term raises": (term("mine:raises"), "mine:raises raised RuntimeError in line 14: of my own; mend it"),
        "term's kind": (term("mine:number"), "mine:number raised TypeError: 'int' object is not callable; mend it"),
        "no term": (term("mine:size"), "cannot import \"mine:size\": module 'mine' has no attribute 'size'"),
        "no rows": (wrote("mine:none"), "mine:none gave [] for step 0; return a list of rows such as {'prompt': '...'}"),
        "no row": (wrote("mine:strings"), "mine:strings gave ['text'] for step 0; return a list of rows"),
        "nothing": (wrote("mine:nothing"), "mine:nothing raised TypeError: 'NoneType' object is not iterable; mend it, or name another"),
        "raises": (wrote("mine:raises"), "mine:raises raised RuntimeError in line 14: of my own; mend it, or name another"),
        "columns": (wrote("mine:columns"), "mine:columns: a row has columns question; rows need text, prompt"),
        "no source": (wrote("mine:size"), "cannot import \"mine:size\": module 'mine' has no attribute 'size'"),
    },
    "evaluate": {
        "data": (evaluate("--student student --data nothing.parquet"), "there is no file nothing.parquet"),
        "student": (evaluate("--student ./nobody --data train.jsonl"), "there is no folder ./nobody"),
        "rows": (evaluate("--student student --data train.jsonl --rows -3"), "rows, each, max_tokens and tokens_per_pass must be at least 1"),
        "category": (evaluate("--student student --data train.jsonl --category kind"), "kind"),
        "out": (evaluate("--student student --data train.jsonl --out notes.txt/figures"), "cannot write to notes.txt/figures ("),
        "vocabulary": (evaluate("--student student --teacher swapped --data train.jsonl"), "the vocabularies of student and teacher differ"),
    },
    "report": {
        "nothing": (["report", "nowhere"], "nowhere is no run folder (one with recipe.yaml"),
        "folder": (["report", "folder"], "found a folder without any of them; give the --out of a distillation"),
        "file": (["report", "notes.txt"], "notes.txt is no run folder (one with recipe.yaml"),
    },
}
# fmt: on


def said(arguments: list[str], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and complaints of a command."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", ["limbeck", *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        cli.main()
        sys.exit(0)
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"), [pytest.param(*case, id=f"{group}-{name}") for group, cases in CASES.items() for name, case in cases.items()]
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], line: str, home: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = ["--out", str(tmp_path / "run")] if arguments[0] == "distill" and "--out" not in arguments else []
    code, err = said([*arguments, *out], home, monkeypatch, capsys)
    complaints = [each for each in err.splitlines() if each.startswith("limbeck: ")]
    assert code == 2 and len(complaints) == 1 and err.endswith(complaints[0] + "\n") and "Traceback" not in err
    assert line in complaints[0]
    assert not (tmp_path / "run" / "student").exists()
    assert not (home / "ran").exists(), "code or a pickle from outside was run"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dstill", "kd"], "No such command 'dstill'"),
        (["distill"], "Missing argument"),
        (["distill", "kd", "--tempature", "2"], "No such option: --tempature"),
        (["evaluate", "--data", "train.jsonl"], "run folders or --student say who is measured"),
        (["evaluate", "--student", "student", "--data", "train.jsonl", "--rows", "many"], "Invalid value for '--rows'"),
    ],
)
def test_options_that_do_not_exist(arguments: list[str], words: str, home: Path, monkeypatch, capsys) -> None:
    code, err = said(arguments, home, monkeypatch, capsys)
    assert code == 2 and words in err and "Traceback" not in err


def test_prompts_that_are_too_long_are_kept_out_counted_and_said(home: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    command = own("steps=2", "source.sequences=4", "source.sampling.max_tokens=4", prompts="some_long.jsonl")
    code, err = said([*command, "--out", str(tmp_path / "run")], home, monkeypatch, capsys)
    assert code == 0 and err.count("left out 1 rows (prompts longer than max_prompt=1024 or the student's context)") == 1
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["left_out"]) for row in steps] == [(1, 1), (2, 1)]


def test_heads_with_padding_are_cut_and_said(home: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    assert said([*kd(), "--out", str(tmp_path / "run")], home, monkeypatch, capsys)[0] == 0
    found = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert [(found[who]["head_rows"], found[who]["tokens"]) for who in ("student", "teacher")] == [(272, 258)] * 2


def test_columns_that_are_null_are_not_there(home: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    command = [*judged("mine:length"), "--set", "source.prompts=nulls.jsonl", "--out", str(tmp_path / "run")]
    assert said(command, home, monkeypatch, capsys)[0] == 0


@pytest.mark.parametrize("text", ['{"step": 1, "loss\n{}\n', "5\n"])
def test_a_report_names_what_it_cannot_read(text: str, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text(text)
    assert said(["report", "run"], tmp_path, monkeypatch, capsys) == (0, "")
    assert "metrics.jsonl cannot be read" in (tmp_path / "run" / "report.html").read_text()
