"""``limelight serve``: an OpenAI-compatible server for one model."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated

import typer

from limelight.cli import options
from limelight.cli.options import DECODING, LOADING
from limelight.errors import MissingExtraError, ModelError, SettingError

KEY_VARIABLE = "LIMELIGHT_API_KEY"
NETWORK, LIMITS, REPLICAS = "Network", "Limits", "Replicas (Ray Serve)"


@options.grouped
def serve(
    model: options.ModelName,
    strategy: Annotated[
        str, typer.Option("--strategy", "-s", help="Default decoding strategy of requests.", rich_help_panel=DECODING)
    ] = "greedy",
    settings: options.Settings = None,
    offer: Annotated[
        list[str] | None,
        typer.Option(
            "--offer", help="A strategy that requests may choose; repeat for several. All by default.", rich_help_panel=DECODING
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=NETWORK)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 selects a free one.", rich_help_panel=NETWORK)] = 8000,
    name: Annotated[
        str | None, typer.Option(help="The model's name for clients; MODEL by default, for a folder its base name.", rich_help_panel=NETWORK)
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help=f"File with the key that clients must send (or set {KEY_VARIABLE}).", rich_help_panel=NETWORK),
    ] = None,
    image_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Fetch images from this https host; repeat for several. None by default.", rich_help_panel=NETWORK
        ),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a proxy whose X-Forwarded-For is trusted; repeat for several.", rich_help_panel=NETWORK
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            min=1, max=256, help="Maximum number of answers decoded together; 1: one at a time.", rich_help_panel=LIMITS
        ),
    ] = 8,
    prefix_cache: Annotated[
        int,
        typer.Option(
            min=0,
            help="Prompts whose prefill later ones with the same beginning share (the next turn, another question about the "
            "same image), under strategies with a meter; 0: none.",
            rich_help_panel=LIMITS,
        ),
    ] = 0,
    replicas: Annotated[
        int | None,
        typer.Option(min=1, help="Serve under Ray Serve with this number of replicas.", rich_help_panel=REPLICAS),
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Let Ray Serve scale up to this number of replicas.", rich_help_panel=REPLICAS)
    ] = None,
    replica_cpus: Annotated[float, typer.Option(min=0, help="CPUs per replica, in Ray's logical resources.", rich_help_panel=REPLICAS)] = 1.0,
    replica_gpus: Annotated[float, typer.Option(min=0, help="GPUs per replica; fractions share one.", rich_help_panel=REPLICAS)] = 0.0,
    queue: Annotated[int, typer.Option(min=1, help="Queued requests; further ones get 429.", rich_help_panel=LIMITS)] = 32,
    per_client: Annotated[
        int | None,
        typer.Option(min=1, help="Queued requests per client address; a quarter of the queue by default.", rich_help_panel=LIMITS),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds per request.", rich_help_panel=LIMITS)] = 120.0,
    drain: Annotated[
        float, typer.Option(min=1, help="Seconds to finish running requests after SIGTERM.", rich_help_panel=LIMITS)
    ] = 120.0,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="MB per request body.", rich_help_panel=LIMITS)] = 24.0,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels per image.", rich_help_panel=LIMITS)] = 16_000_000,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds per audio clip.", rich_help_panel=LIMITS)] = 300.0,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Prompt tokens per request.", rich_help_panel=LIMITS)] = 8192,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="New tokens per answer.", rich_help_panel=LIMITS)] = 4096,
    loading: options.Loading = options.Loading(),
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Serve a folder without safetensors weights.", rich_help_panel=LOADING),
    ] = False,
    debug: options.Debug = False,
) -> None:  # fmt: skip
    """Serve a model to OpenAI clients: chat completions, streamed or not, with a decoding strategy and its grounding.

    Remote images are disabled unless hosts are given; everything a client sends is limited. See docs/server.md.

    **Examples**

        limelight serve demo-vision

        limelight serve llava-hf/llava-1.5-7b-hf --strategy lime-cached --device cuda --dtype bfloat16

        LIMELIGHT_API_KEY=... limelight serve demo-vision --host 0.0.0.0 --image-host images.example.org

        limelight serve llava-hf/llava-1.5-7b-hf --device cuda --replicas 1 --max-replicas 8 --replica-gpus 1
    """
    try:
        from limelight.server.app import create_app
        from limelight.server.guard import host_names, is_loopback
        from limelight.server.limits import Limits
        from limelight.server.run import FAILED, configured
        from limelight.server.state import ServerConfig
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "limelight"):
            raise
        raise MissingExtraError(package, "server") from error
    from limelight.cli import terminal
    from limelight.decoding.registry import strategies

    key, proxies = _key(api_key_file), _networks(trusted_proxy or [])
    known = frozenset(strategies())
    offered = frozenset(offer) if offer else known
    if offered - known:
        raise SettingError(f"unknown strategy {min(offered - known)!r}", hint="see `limelight strategies`")
    limits = Limits(
        queue=queue, per_client=per_client, timeout=timeout, body_bytes=round(max_body_mb * 1e6),
        media_bytes=max(1, round(max_body_mb * 1e6 / 2)), pixels=max_pixels, seconds=max_seconds,
        prompt_tokens=max_prompt_tokens, new_tokens=max_new_tokens,
    )  # fmt: skip
    if replicas is not None and trusted_proxy:
        raise SettingError("Ray Serve does not support --trusted-proxy", hint="omit it, or serve without --replicas")
    if replicas is None and max_replicas is not None:
        raise SettingError("--max-replicas needs --replicas", hint="--replicas 1 --max-replicas 4 scales from one")
    with terminal.quiet():
        chosen = options.strategy_of(strategy, settings or [])
        if not allow_pickle:
            _safetensors_only(Path(model))
        adapter = None if replicas else terminal.load(model, loading)
    served = ServerConfig(
        name or options.public_name(model),
        chosen,
        offered,
        limits,
        key,
        frozenset(h.lower() for h in image_host or ()),
        host_names(host),
        batch,
        prefix_cache,
    )
    if key is None and not is_loopback(host):
        terminal.err.print(f"[yellow]anyone who can reach {host}:{port} can use this server: set {KEY_VARIABLE}[/]")
    terminal.err.print(f"{served.model} with {chosen.name}", markup=False)
    if adapter is not None:
        server = configured(create_app(adapter, served), host, port, drain_seconds=drain, trusted_proxies=proxies)
        server.run()
        if server.failed:
            raise typer.Exit(FAILED)
        return
    from limelight.server import ray_serve

    least = replicas or 1
    wanted = ray_serve.Replicas(
        least, max_replicas or least, cpus=replica_cpus, gpus=replica_gpus, drain_seconds=drain
    )  # fmt: skip
    ray_serve.run(ray_serve.application(ray_serve.loader(model, **loading.given), served, wanted), host, port)


def _networks(given: list[str]) -> list[str]:
    for text in given:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise SettingError(
                f"--trusted-proxy: {error}", hint="an address (10.0.0.1) or a network (10.0.0.0/8)"
            ) from error
    return given


def _key(file: Path | None) -> str | None:
    """Read the API key from a file or the environment; never from the command line, where other users can see it."""
    if file is None:
        key = os.environ.get(KEY_VARIABLE)
        return key.strip() or None if key else None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"cannot read the API key in {file}: {error}", hint="it must be a text file with one line"
        ) from error
    if not key:
        raise SettingError(f"{file} contains no API key", hint="it must be a text file with one line")
    return key


def _safetensors_only(folder: Path) -> None:
    """Raise when a checkpoint folder has only pickled weights."""
    pickles = [p.name for kind in ("*.bin", "*.pt", "*.pth") for p in folder.glob(kind)] if folder.is_dir() else []
    if pickles and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder.name} contains {pickles[0]} and no safetensors weights; loading it may run code",
            hint="convert it to safetensors, or pass --allow-pickle",
        )
