"""Text for every parameter and field of the reference, from where the sources have it.

An extension of griffe, which reads the sources for the reference:

* Parameters that a docstring describes together (`z_a, z_b: ...`) get the type that they share.
* A class whose options "are those of" a function gets that function's descriptions.
* A field's comment is its description. What a constructor merely keeps is not listed.
"""

import re

import griffe

TOGETHER = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): ", re.M)
BORROWED = re.compile(r"the options are those of `(\w+)`")
ENTRY = re.compile(r"^    (\w+): .*\n(?:^     +.*\n|^\n(?=     ))*", re.M)
COMMENT = re.compile(r"#(?! noqa| fmt| type)\s*(.+)$")


def describe_together(callable_):
    """Types of the parameters that one entry describes, in the entry."""

    def typed(found):
        names = found["names"].split(", ")
        parameters = [callable_.parameters[n] for n in names if n in callable_.parameters]
        types = list(dict.fromkeys(str(parameter.annotation) for parameter in parameters))
        if len(parameters) < len(names) or "None" in types:
            return found[0]
        return f"{found['indent']}{found['names']} ({', '.join(types)}): "

    if callable_.docstring is not None:
        callable_.docstring.value = TOGETHER.sub(typed, callable_.docstring.value)


class Descriptions(griffe.Extension):
    def on_function(self, *, func, loader, **more):
        describe_together(func)

    def on_class(self, *, cls, loader, **more):
        describe_together(cls)
        lender = cls.docstring and BORROWED.search(cls.docstring.value)
        if lender:
            arguments = cls.module[lender[1]].docstring.value.partition("\nArgs:\n")[2]
            borrowed = [
                found[0] for found in ENTRY.finditer(f"{arguments}\n") if found[1] in cls.parameters
            ]
            cls.docstring.value += "\n\nArgs:\n" + "".join(borrowed)
        for name, member in list(cls.members.items()):
            if member.is_alias or not member.is_attribute or member.docstring is not None:
                continue
            comment = COMMENT.search(cls.module.source.splitlines()[member.lineno - 1])
            kept_by_constructor = (
                member.labels == {"instance-attribute"} and member.value is not None
            )
            if kept_by_constructor:
                del cls.members[name]
            elif comment:
                member.docstring = griffe.Docstring(comment[1], parent=member)
