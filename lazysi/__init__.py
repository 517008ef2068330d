"""Sampling from flow and diffusion models in as few steps as the mathematics allows."""

from lazysi import grids, metrics, targets
from lazysi.conversion import (
    convert_diffusion,
    convert_noise,
    convert_path,
    convert_state,
    convert_time,
    convert_velocity,
    replay,
)
from lazysi.dynamics import drift, lazy_terms, optimal_diffusion, schedule_terms, score, velocity
from lazysi.fields import (
    Field,
    PerSample,
    Prediction,
    data_field,
    guided,
    noise_field,
    score_field,
    unit_velocity_field,
    velocity_field,
)
from lazysi.fitting import fit_schedule
from lazysi.frames import Frame, LazyFrame, flat_frame, gaussian_frame, linear_frame, point_frame
from lazysi.learned import LearnedSchedule, LearnedSteps, learned_plan, learned_schedule, learned_steps
from lazysi.likelihood import bits_per_dimension, log_prob
from lazysi.measuring import measure_frame
from lazysi.models.classifier import PretrainedClassifier, load_classifier
from lazysi.models.convert import convert_weights
from lazysi.models.decoding import PretrainedAutoencoder, load_autoencoder
from lazysi.models.pretrained import PretrainedModel, load_pretrained
from lazysi.models.text import TextEmbeddings, load_embeddings
from lazysi.moments import cosine_basis, diagonal, fit_moments, isotropic, principal_basis
from lazysi.noise import SampleNoise
from lazysi.plans import Plan, load_plan, save_plan
from lazysi.sampling import sample, sample_path
from lazysi.schedule_files import load_schedule, save_schedule
from lazysi.schedules import (
    AbstractSchedule,
    angle,
    from_functions,
    lazy,
    linear,
    log_snr,
    point_mass,
    radius,
    shifted,
    trigonometric,
    variance_exploding,
    variance_preserving,
)
from lazysi.solvers import Multistep
from lazysi.tuning import tune

__version__ = "0.1.0"

__all__ = [
    "AbstractSchedule",
    "Field",
    "Frame",
    "LazyFrame",
    "LearnedSchedule",
    "LearnedSteps",
    "Multistep",
    "PerSample",
    "Plan",
    "Prediction",
    "PretrainedAutoencoder",
    "PretrainedClassifier",
    "PretrainedModel",
    "SampleNoise",
    "TextEmbeddings",
    "angle",
    "bits_per_dimension",
    "convert_diffusion",
    "convert_noise",
    "convert_path",
    "convert_state",
    "convert_time",
    "convert_velocity",
    "convert_weights",
    "cosine_basis",
    "data_field",
    "diagonal",
    "drift",
    "fit_moments",
    "fit_schedule",
    "flat_frame",
    "from_functions",
    "gaussian_frame",
    "grids",
    "guided",
    "isotropic",
    "lazy",
    "lazy_terms",
    "learned_plan",
    "learned_schedule",
    "learned_steps",
    "linear",
    "linear_frame",
    "load_autoencoder",
    "load_classifier",
    "load_embeddings",
    "load_plan",
    "load_pretrained",
    "load_schedule",
    "log_prob",
    "log_snr",
    "measure_frame",
    "metrics",
    "noise_field",
    "optimal_diffusion",
    "point_frame",
    "point_mass",
    "principal_basis",
    "radius",
    "replay",
    "sample",
    "sample_path",
    "save_plan",
    "save_schedule",
    "schedule_terms",
    "score",
    "score_field",
    "shifted",
    "targets",
    "trigonometric",
    "tune",
    "unit_velocity_field",
    "variance_exploding",
    "variance_preserving",
    "velocity",
    "velocity_field",
]
