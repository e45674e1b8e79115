"""A server that speaks SandboxFusion's format and nothing else, on the port given; for the client's fallback."""

from __future__ import annotations

import contextlib
import sys

import uvicorn
from fastapi import FastAPI

from solostream.sandbox import open_sandbox
from solostream.sandbox.server import fusion
from solostream.sandbox.server.app import answer_errors
from solostream.sandbox.server.metrics import ServerMetrics
from solostream.sandbox.server.sessions import Sessions
from solostream.sandbox.server.settings import Settings
from solostream.sandbox.types import Limits


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI):
    sandbox = open_sandbox("fork", limits=Limits(output_bytes=1 << 20))
    app.state.sessions = Sessions(sandbox, Settings(), ServerMetrics())
    yield
    await sandbox.close()


app = FastAPI(lifespan=lifespan)
app.include_router(fusion.router)
answer_errors(app)

if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
