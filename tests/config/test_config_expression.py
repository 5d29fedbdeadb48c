from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bhive_mltf.config.expressions.expression import Expression
from bhive_mltf.config.expressions.functions import FUNCTIONS
from bhive_mltf.errors import ExpressionError, MissingBranchError

UNARY = sorted(name for name, f in FUNCTIONS.items() if f.least == f.most == 1)
BINARY = sorted(name for name, f in FUNCTIONS.items() if f.least == f.most == 2)

leaves = st.sampled_from(["x", "y", "(x * 2.5)", "(1e-3 - y)", "(np.pi + x)"])


def _grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(inner, inner)
    prefix = st.sampled_from(["np.", "numpy.", ""])
    compare = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    unary = [name for name in UNARY if name != "isfinite"]
    return st.one_of(
        st.builds(lambda p, f, a: f"{p}{f}({a})", prefix, st.sampled_from(unary), inner),
        st.builds(lambda p, f, ab: f"{p}{f}({ab[0]}, {ab[1]})", prefix, st.sampled_from(BINARY), pairs),
        st.builds(lambda op, ab: f"({ab[0]} {op} {ab[1]})", st.sampled_from(["+", "-", "*", "/", "%", "**"]), pairs),
        st.builds(lambda a: f"(-{a})", inner),
        st.builds(lambda a: f"clip({a}, -1.5, 2.0)", inner),
        st.builds(
            lambda op, ab, cd: (
                f"np.where(({ab[0]} {op} {ab[1]}) & ~isfinite({cd[0]}) | ({cd[0]} > 0), {cd[0]}, {cd[1]})"
            ),
            compare,
            pairs,
            pairs,
        ),
    )


expressions = st.recursive(leaves, _grow, max_leaves=8)
floats = st.lists(st.floats(width=32), min_size=3, max_size=3)


@given(text=expressions, x=floats, y=floats)
def test_same_numbers_as_numpy(text, x, y):
    values = {"x": np.array(x, np.float32), "y": np.array(y, np.float32)}
    known = {name: getattr(np, name) for name in FUNCTIONS} | {"np": np, "numpy": np}
    with np.errstate(all="ignore"):
        expected = eval(text, known, values)
    np.testing.assert_array_equal(Expression.parse(text).evaluate(values), expected)


X = np.array([-1.0, 0.0, 2.0, np.nan], np.float32)
I = np.array([0, 1, 2, 3], np.int32)  # noqa: E741
B = np.array([True, False, True, False])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-1 < x < 3", [False, True, True, False]),
        ("x > 0 or x < 0", [True, False, True, False]),
        ("not x > 0 and not x < 0", [False, True, False, True]),
        ("~b", [False, True, False, True]),
        ("~(i > 1) | b", [True, True, True, False]),
        ("i & 1", [0, 1, 0, 1]),
        ("b + b", [2, 0, 2, 0]),
        ("b - (i > 0)", [1, -1, 0, -1]),
        ("-b", [-1, 0, -1, 0]),
        ("i ** -1", [np.inf, 1, 0.5, 1 / 3]),
        ("i % 2", [0, 1, 0, 1]),
        ("u - 5", [-5, -4, -3, -2]),
        ("u + 300", [300, 301, 302, 303]),
        ("clip(i, a_min=1, a_max=2)", [1, 1, 2, 2]),
        ("nan_to_num(x, nan=-9.0)", [-1, 0, 2, -9]),
        ("ak.where(b, x, np.inf)", [-1, np.inf, 2, np.inf]),
        ("awkward.nan_to_num(x)", [-1, 0, 2, 0]),
        ("e + pi", [10, 10, 10, 10]),
        ("x * np.e ** 0", [-1, 0, 2, np.nan]),
        ("  log1p(\n  i * 0 )  ", [0, 0, 0, 0]),
        ("where * 0", [0, 0, 0, 0]),
        ("i ** 9 ** 9 ** 9", [0, 1, np.inf, np.inf]),
        ("i * 0 + 9007199254740992 * 9007199254740992", [2.0**106] * 4),
        ("i & (1 + 1)", [0, 0, 2, 2]),
        ("i * 0 + 1 / 0", [np.inf] * 4),
        ("i * (0 - 0 % 0)", [np.nan] * 4),
    ],
)
def test_values(text, expected):
    branches = {"x": X, "i": I, "b": B, "u": I.astype(np.uint8), "where": I}
    branches |= {"e": np.full(4, 4), "pi": np.full(4, 6)}
    np.testing.assert_array_equal(Expression.parse(text).evaluate(branches), expected)


def test_float32_stays_float32():
    for text in ("log(2.0 * x) / 3", "clip(x, -1.5, np.pi)", "where(x > 0, x, -1.0)", "x * (1 / 3) + log(2)"):
        assert Expression.parse(text).evaluate({"x": np.ones(2, np.float32)}).dtype == np.float32


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("__import__('os').system('true')", "only functions can be called"),
        ("__import__('os')", "no function `__import__`"),
        ("x.__class__", "an attribute is not part"),
        ("np.linalg.norm(x)", "only functions can be called"),
        ("np.load", "no constant `np.load`"),
        ("np.fromfile(x)", "no function `fromfile`"),
        ("os.system(x)", "`os.system` is not part of the grammar"),
        ("(lambda: x)()", "only functions can be called"),
        ("lambda: x", "a lambda is not part"),
        ("x[0]", "a subscript is not part"),
        ("[y for y in x]", "a comprehension is not part"),
        ("(y := x)", "an assignment is not part"),
        ("'text'", "is not a number"),
        ("x + 1j", "is not a number"),
        ("x + True", "is not a number"),
        ("f'{x}'", "JoinedStr is not part"),
        ("x if x > 0 else 1", "write where(condition, a, b)"),
        ("x // 2", "write floor(a / b)"),
        ("x @ x", "MatMult is not part"),
        ("x << 100", "LShift is not part"),
        ("x in x", "In is not part"),
        ("(x, x)", "Tuple is not part"),
        ("np + 1", "only a prefix"),
        ("ak.sum(x)", "elementwise where, nan_to_num"),
        ("logg(x)", "there is no function `logg`; there are log"),
        ("log(x, x)", "`log` takes 1 arguments, not 2"),
        ("clip()", "`clip` takes 1 to 3 arguments, not 0"),
        ("clip(x, 1, 2, a_min=3)", "cannot compute"),
        ("log(x, out=x)", "`log` has no keyword `out`, only none"),
        ("log(*x)", "Starred is not part"),
        ("log(**x)", "takes 1 arguments, not 0"),
        ("nan_to_num(x, **x)", "no keyword `None`"),
        ("log(x) & 1", "cannot compute"),
        ("9 ** 9 ** 9", "is a constant"),
        ("np.pi", "is a constant"),
        ("x + 99999999999999999999", "above 2**53"),
        ("", "is not an expression"),
        ("x +", "is not an expression"),
        ("x; y", "is not an expression"),
        ("x = 1", "is not an expression"),
        ("x\0", "x"),
        ("+".join("x" * 200), "split it"),
        ("hypot(" * 160 + "x" + ", x)" * 160, "150 levels"),
        ("(" * 1000 + "x" + ")" * 1000, "key"),
        ("-" * 3000 + "x", "key"),
        ("x + " * 3000 + "x", "at most 4000"),
        (" + ".join(["(" + "+".join("x" * 90) + ")"] * 9), "more than 1000 parts"),
    ],
)
def test_refused(text, part):
    with pytest.raises(ExpressionError) as caught:
        Expression.parse(text, where="config c.yml, key cpf_custom_features.a")
    assert part in str(caught.value)
    assert str(caught.value).startswith("config c.yml, key cpf_custom_features.a: ")
    assert len(str(caught.value)) < 1000


def test_long_expressions_within_the_limits():
    x = np.ones(3)
    text = "hypot(" * 120 + "x" + ", x)" * 120
    np.testing.assert_allclose(Expression.parse(text).evaluate({"x": x}), 11.0)
    text = "maximum(" + "+".join("x" * 100) + ", " + "+".join("x" * 99) + ")"
    np.testing.assert_array_equal(Expression.parse(text).evaluate({"x": x}), 100 * x)


@given(st.text(max_size=60))
def test_any_text_is_an_expression_or_refused(text):
    try:
        expression = Expression.parse(text)
    except ExpressionError:
        return
    assert expression.names


def test_w13_config_text_is_never_run(tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(ExpressionError):
        Expression.parse(f"__import__('pathlib').Path({str(marker)!r}).touch()")
    assert not marker.exists()


def test_names_are_branches_only():
    assert Expression.parse("np.hypot(a, b) + where(c > np.pi, log(d), 0)").names == {"a", "b", "c", "d"}


def test_missing_branch():
    with pytest.raises(MissingBranchError, match="no branch `part_px`; nearest: part_py"):
        Expression.parse("part_px + part_py").evaluate({"part_py": X})


def test_operator_not_for_this_type():
    with pytest.raises(ExpressionError, match="take comparisons or integers"):
        Expression.parse("~x").evaluate({"x": X})


def test_pickles_and_has_a_canonical_form():
    expression = Expression.parse("np.log( (a)+b )")
    assert pickle.loads(pickle.dumps(expression)) == expression
    assert expression.canonical == Expression.parse("log(a + b)").canonical
    assert expression.canonical != Expression.parse("log(b + a)").canonical
