"""Parameters that a docstring describes together (`z_a, z_b: ...`) get the type that they share.

An extension of griffe, which reads the sources for the reference.
"""

import re

import griffe

TOGETHER = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): ", re.M)


class SharedParameters(griffe.Extension):
    def on_function(self, *, func, loader, **more):
        if func.docstring is None:
            return

        def typed(found):
            names = found["names"].split(", ")
            parameters = [func.parameters[name] for name in names if name in func.parameters]
            types = {str(parameter.annotation) for parameter in parameters}
            if len(parameters) < len(names) or len(types) != 1 or "None" in types:
                return found[0]
            return f"{found['indent']}{found['names']} ({types.pop()}): "

        func.docstring.value = TOGETHER.sub(typed, func.docstring.value)
