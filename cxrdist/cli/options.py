"""Options that several commands share."""

from typing import Annotated

import typer

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change one value of it; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Debug = Annotated[
    bool, typer.Option("--debug", help="Apply the file's own `debug` section: a size that ends soon on a CPU.")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="A running Ray cluster: HOST:PORT or `auto`, or http://HOST:8265 to run on its head. Default: a local one."
    ),
]
ShipCode = Annotated[
    bool, typer.Option("--ship-code", help="With an http address: run this machine's cxrdist there, not the cluster's.")
]
