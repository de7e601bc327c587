"""What another library says of the same steps.

From dp-accounting 0.6.0 (Apache License 2.0, Google). The two values in the middle enclose the truth; they are
``get_epsilon_for_delta(delta)`` of

    dp_accounting.pld.privacy_loss_distribution.from_gaussian_mechanism(
        parameter, sampling_prob=rate, value_discretization_interval=h, pessimistic_estimate=p, use_connect_dots=p
    ).self_compose(count)

with ``p`` False and True (``from_laplace_mechanism`` for Laplace) and h from 2e-7 to 1e-3; of the mixture the parts are
composed by ``compose``. The last one is ``RdpAccountant().compose(SelfComposedDpEvent(PoissonSampledDpEvent(rate,
GaussianDpEvent(parameter)), count)).get_epsilon(delta)``, which knows no Laplace noise on samples.
"""

from polyclinic.privacy import Event

#: Mechanism, parameter, rate, count, δ; ε at least, ε at most, ε by Rényi divergences.
GRID = [
    ("gaussian", 0.5, 0.001, 1, 1e-05, 0.337595, 0.3376, 2.83561),
    ("gaussian", 0.5, 0.01, 100, 1e-08, 10.7329, 10.7334, 12.37981),
    ("gaussian", 0.5, 0.1, 100, 1e-05, 31.366, 31.371, 36.96667),
    ("gaussian", 0.8, 0.001, 10000, 1e-05, 0.772388, 0.782388, 1.38382),
    ("gaussian", 0.8, 0.5, 100, 1e-05, 58.0662, 58.0712, 68.70236),
    ("gaussian", 1.1, 0.004, 9000, 1e-05, 1.71671, 1.73921, 1.90337),
    ("gaussian", 1.1, 0.01, 10000, 1e-08, 6.84307, 6.89308, 7.29163),
    ("gaussian", 1.1, 0.1, 1, 1e-05, 1.35902, 1.35903, 1.77117),
    ("gaussian", 2, 0.01, 1, 1e-08, 0.0818243, 0.0818248, 0.38546),
    ("gaussian", 2, 0.01, 10000, 1e-05, 2.1377, 2.16271, 2.35291),
    ("gaussian", 2, 0.1, 1000, 1e-10, 12.1763, 12.1863, 12.75461),
    ("gaussian", 4, 0.01, 10000, 1e-05, 0.936867, 0.946876, 1.03549),
    ("gaussian", 4, 0.5, 100, 1e-08, 7.7265, 7.7275, 8.16336),
    ("gaussian", 10, 0.001, 10000, 1e-05, 0.0263367, 0.0273427, 0.03239),
    ("gaussian", 10, 0.1, 10000, 1e-05, 4.29636, 4.39636, 4.75032),
    ("gaussian", 0.3, 0.2, 20, 1e-06, 77.245, 77.2556, 89.52524),
    ("gaussian", 30, 0.5, 200, 1e-06, 0.997108, 0.998108, 1.07643),
    ("gaussian", 2, 1, 100, 1e-05, 33.0987, 33.1037, 35.08175),
    ("gaussian", 10, 1, 1, 1e-08, 0.4928453, 0.4928504, 0.52356),
    ("laplace", 1, 1, 10, 1e-05, 9.98996, 9.98996, 9.99033),
    ("laplace", 1, 0.1, 100, 1e-05, 4.15191, 4.1523, None),
    ("laplace", 20, 1, 1000, 1e-06, 8.20432, 8.20444, 8.73253),
    ("laplace", 5, 0.01, 5000, 1e-08, 0.682566, 0.688749, None),
    ("laplace", 0.2, 0.05, 50, 1e-05, 18.7871, 18.7897, None),
]

MIXTURE = (
    Event.gaussian(1.1, 0.02, 1500),
    Event.laplace(20, 1, 30),
    Event.gaussian(30, 1, 150),
    Event.gaussian(2, 0.1, 50),
)
#: At δ = 1e-5.
MIXED = (4.93103, 4.94804, 5.38965)
