"""What of an exported program may be evaluated: arithmetic over symbols, plain trees, operators of torch. And nothing else."""

from __future__ import annotations

import json

import pytest

from slipway_runtime.torch_files import _TARGET, _is_expression, _is_plain_tree

WRITTEN = [
    "Symbol('s27', positive=True, integer=True)",
    "Add(Mul(Integer(4), Symbol('s27', positive=True, integer=True)), Integer(-4))",
    "Max(Integer(1), TruncToInt(Mul(Float('1.5', precision=53), ToFloat(Symbol('s27', positive=True, integer=True)))))",
    "((-1) + L['ids'].size()[1]) == ((-1) + L['mask'].size()[1])",
    "L['ids'].size()[0] == L['mask'].size()[0] and L['x'].dim() < 3",
    "floor(Symbol('u0'))",
    "not L['flag']",
    "176*L['x'].size()[0]*((-2) + math.trunc(1.5*torch.sym_float(L['x'].size()[2]))) >= 2",
    "-1",
]
HOSTILE = [
    "__import__('os').system('x')",
    "eval('1')",
    "torch.load('x')",
    "torch.os.system('x')",
    "math.__loader__",
    "open('/etc/passwd')",
    "exec('import os')",
    "getattr(L, 'x')",
    "().__class__.__bases__",
    "L['x'].size.__globals__",
    "L['x'].tofile('a')",
    "Symbol('__class__')",
    "Symbol('import os')",
    "[x for x in L]",
    "lambda: 1",
    "(x := 1)",
    "f'{L}'",
    "1 # )",
    "1), print(2",
    "1\n2",
    "breakpoint()",
    "L['x']; 1",
    "\N{FULLWIDTH LATIN SMALL LETTER E}val('1')",
    "(" * 5000,
    "",
    "*L",
    "b'x'",
]


@pytest.mark.parametrize(("text", "want"), [*((text, True) for text in WRITTEN), *((text, False) for text in HOSTILE)])
def test_expressions(text, want):
    assert _is_expression(text) is want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("torch.ops.aten.linear.default", True),
        ("torch.ops.higher_order.cond", True),
        ("torch.ops.quantized_decomposed.quantize_per_tensor.default", True),
        ("_operator.add", True),
        ("math.ceil", True),
        ("torch.sym_min", True),
        ("torch.ops.aten.from_file.default", False),
        ("torch.ops.load_library", False),
        ("torch.ops.loader.load_library", False),
        ("torch.os.system", False),
        ("torch.hub.load", False),
        ("torch.load", False),
        ("_operator.attrgetter", False),
        ("_operator.methodcaller", False),
        ("math.os.system", False),
        ("torch.ops.aten", False),
        ("os.system", False),
        ("#extension:x", False),
    ],
)
def test_targets(text, want):
    assert (_TARGET.fullmatch(text) is not None) is want


LEAF = {"type": None, "context": None, "children_spec": []}


@pytest.mark.parametrize(
    ("node", "want"),
    [
        (LEAF, True),
        ({"type": "builtins.tuple", "context": "null", "children_spec": [LEAF, LEAF]}, True),
        ({"type": "builtins.dict", "context": json.dumps(["image", "mask"]), "children_spec": [LEAF, LEAF]}, True),
        ({"type": "collections.defaultdict", "context": "{}", "children_spec": []}, False),
        ({"type": "collections.namedtuple", "context": '"os"', "children_spec": []}, False),
        ({"type": "builtins.dict", "context": json.dumps(['a"]); print(1) #']), "children_spec": [LEAF]}, False),
        (
            {"type": "builtins.dict", "context": json.dumps([{"__enum__": True, "fqn": "os:x", "name": "y"}]), "children_spec": [LEAF]},
            False,
        ),
        (
            {"type": "builtins.tuple", "context": "null", "children_spec": [{"type": "torch.x", "context": None, "children_spec": []}]},
            False,
        ),
        ({}, False),
        ([], False),
    ],
)
def test_trees(node, want):
    assert _is_plain_tree(json.dumps([1, node])) is want
