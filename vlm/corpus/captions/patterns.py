"""The sentence patterns of the caption grammar.

Fields: {img} the image without article, {a_img} with a or an, {on} the preposition that goes with it; {f} findings with
articles, {bare} without, {is} their verb; {first}, {rest}, {is_first}, {is_rest} of several findings; {p} possible
findings, {f_or} joined by "or"; {d} what is absent behind "no", {d_any} with articles, {is_d} its verb; {n} a normal
thing, {n_bare} without article, {is_n} its verb, {adj} the adjective of a normal image; {r} a region, {is_r} its verb,
{plain} the image without anatomy, {a_plain}. A field that ends in "_again" begins a sentence.
"""

FINDINGS = (
    "{a_img} showing {f}",
    "this {img} shows {f}",
    "{f} {is} seen {on} this {img}",
    "{img} with {f}",
    "{img}: {bare}",
    "{on} this {img}, {f} can be seen",
    "the {img} demonstrates {f}",
    "{f} {on} {a_img}",
    "{img}. {f_again} {is} present",
    "{f} {is} visible {on} the {img}",
    "{a_img} demonstrating {f}",
    "the {img} reveals {f}",
)
OF_DISEASE = (
    "{img} in a patient with {f}",
    "{a_img} from a patient with {f}",
    "the findings {on} this {img} are those of {f}",
    "there is evidence of {f} {on} this {img}",
)
"""Where all findings are diseases."""
OF_SEVERAL = (
    "{first} {is_first} seen {on} this {img}, together with {rest}",
    "this {img} shows {first} as well as {rest}",
    "in addition to {first}, this {img} shows {rest}",
    "{img} with {first}; {rest} {is_rest} also present",
    "findings {on} this {img} include {f}",
)
OF_ONE = ("there {is} {f} {on} this {img}", "{a_img} that shows {f}")
LOCATED = ("{f} {where} {on} this {img}", "this {img} shows {f} {where}")

NORMAL = (
    "{adj} {img}",
    "this {img} is {adj}",
    "{a_img} showing {n}",
    "no {d} {is_d} seen {on} this {img}",
    "there is no evidence of {d_any} {on} this {img}",
    "{img} without {d_any}",
    "{n} {on} {a_img}",
    "this {img} shows no {d}",
    "{img}: no {d}",
    "{n} {is_n} seen {on} this {img}",
    "{img}: {n_bare}",
    "{img}. No {d} {is_d} identified",
    "the {img} demonstrates {n}",
)
NORMAL_BESIDE = (
    "{a_img} showing {f}, with no abnormality",
    "this {img} shows {f} but no abnormality",
    "{f} {is} seen {on} this {img}, which is otherwise normal",
    "otherwise normal {img} with {f}",
    "apart from {f}, this {img} is normal",
    "{img} with {f} and no abnormality",
    "{img}: {bare}, otherwise unremarkable",
    "{f} {is} present {on} this otherwise unremarkable {img}",
    "this {img} shows {f}; no abnormality is seen",
    "{img}. {f_again} {is} present, and the image is otherwise normal",
    "no abnormality is seen {on} this {img} with {f}",
)
"""A normal image with something that is no disease: support devices."""

UNCERTAIN = (
    "{a_img} showing {p}",
    "this {img} shows {p}",
    "{f_or} cannot be excluded {on} this {img}",
    "{img} with {p}",
    "{f} {is} suspected {on} this {img}",
    "{p} {on} {a_img}",
    "this {img} raises the possibility of {f_or}",
    "this {img} is equivocal for {f_or}",
    "{img}: {p_bare}",
    "{img}. {f_or_again} cannot be ruled out",
    "there is a suspicion of {f_or} {on} this {img}",
    "whether there {there} {f_or} cannot be decided from this {img}",
)
ABSENT = (
    "{a_img} showing no {d}",
    "this {img} shows no {d}",
    "no {d} {is_d} seen {on} this {img}",
    "{img} without evidence of {d_any}",
    "there is no evidence of {d_any} {on} this {img}",
    "{img}: no {d}",
    "{img} with no {d}",
    "the {img} is negative for {d_any}",
    "no sign of {d_any} {on} {a_img}",
    "{img}. No {d} {is_d} present",
    "{on} this {img}, no {d} can be seen",
    "there {is_d} no {d} {on} the {img}",
)
REGION = (
    "this is {a_img}",
    "this {plain} shows {r}",
    "{r} {on} {a_plain}",
    "{a_plain} showing {r}",
    "{r} {is_r} seen {on} this {plain}",
    "this {plain} depicts {r}",
    "{plain} with a view of {r}",
    "{r} {is_r} shown {on} this {plain}",
    "view of {r} {on} {a_plain}",
    "{a_plain} depicting {r}",
    "{on} this {plain}, {r} can be seen",
    "{r} as seen {on} {a_plain}",
    "{r} {is_r} depicted {on} the {plain}",
)

UNCERTAIN_TAILS = (
    ". {f_or_again} cannot be excluded",
    "; {f} {is} also possible",
    ". {f_again} {is} also suspected",
    "; {f_or} cannot be ruled out",
    ". There {there} also {p}",
)
ABSENT_TAILS = (
    ". No {d} {is_d} seen",
    "; there {is_d} no {d}",
    ". There is no evidence of {d_any}",
    ", with no {d}",
)
"""Put behind a sentence about something else; those that begin with a period fit behind every sentence."""
