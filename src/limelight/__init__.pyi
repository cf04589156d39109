# The public names: for type checkers, and read at runtime by lazy_loader, which imports each at its first use.
from .auditing.auditor import audit as audit
from .auditing.segments import audit_segments as audit_segments
from .benchmarks.frame import results as results
from .calibrating.run import calibrate as calibrate
from .decoding.after import after as after
from .decoding.compare import compare as compare
from .decoding.generate import generate as generate
from .decoding.generate import generate_many as generate_many
from .decoding.loop import custom_generate as custom_generate
from .decoding.methods.flb import FirstLogitBoosting as FirstLogitBoosting
from .decoding.methods.greedy import greedy as greedy
from .decoding.methods.lime import lime as lime
from .decoding.methods.lime_cached import lime_cached as lime_cached
from .decoding.methods.look_again import look_again as look_again
from .decoding.methods.meter import meter as meter
from .decoding.methods.relevance_contrastive import relevance_contrastive as relevance_contrastive
from .decoding.registry import strategy as strategy
from .decoding.transcribe import transcribe as transcribe
from .demo.example import example as example
from .errors import LimelightError as LimelightError
from .models.adapter import Adapter as Adapter
from .models.adapter import wrap as wrap
from .models.loading import load as load
from .relevance.attachment import attached as attached
from .relevance.attribute import attribute as attribute
from .relevance.attribute import attribute_generated as attribute_generated
from .relevance.forward.prefix import PrefixCache as PrefixCache
from .types import Generation as Generation
from .types import Relevance as Relevance
from .types import Step as Step

__version__: str
