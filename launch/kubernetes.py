"""Prints the JobSet manifest of one run on several hosts of a Kubernetes cluster.

    python launch/kubernetes.py --name=fish --image=REGISTRY/jaxmarks --hosts=4 --gpus=8 --claim=shared \\
        -- --config=configs/fish.py:paper --workdir=/shared/runs/fish | kubectl apply -f -

The image needs jaxmarks installed and its repository as the working directory. The volume claim is mounted at /shared,
where the workdir must lie. A lost host ends the job; the JobSet then restarts it, and the run resumes from its last
checkpoint.
"""

import argparse
import json
import re
import shlex
import sys

PORT = 8476


def main(arguments: list[str] | None = None) -> int:
    """Prints the manifest that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="name of the JobSet")
    parser.add_argument("--image", required=True, help="container image")
    parser.add_argument("--hosts", type=int, default=1, help="number of processes, each on a host of its own")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each host")
    parser.add_argument(
        "--tpu", default="", help="TPU accelerator and topology instead of GPUs, as tpu-v5-lite-podslice:4x4"
    )
    parser.add_argument("--chips", type=int, default=4, help="TPU chips of each host")
    parser.add_argument("--claim", required=True, help="the persistent volume claim that all hosts share")
    parser.add_argument("--restarts", type=int, default=5, help="how often a failed job is restarted")
    parser.add_argument("arguments", nargs="*", help="arguments of jaxmarks.main, after --")
    options = parser.parse_args(arguments)
    try:
        check(options)
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps(manifest(options), indent=1))
    return 0


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for what Kubernetes would refuse or never schedule, and for a workdir outside /shared."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{,43}[a-z0-9])?", options.name):  # pod names add up to 18 characters
        raise ValueError(
            f"--name={options.name}: give up to 45 of a-z, 0-9 and -, first a letter and last no -, as fish-1"
        )
    for key, least in {"hosts": 1, "gpus": 0, "chips": 1, "restarts": 0}.items():
        if (number := getattr(options, key)) < least:
            raise ValueError(f"--{key}={number}: give at least {least}")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workdir", "-workdir", default="")
    workdir = parser.parse_known_args(options.arguments)[0].workdir
    if not workdir.startswith("/shared/"):
        raise ValueError(
            f"--workdir={workdir}: give a folder in /shared, after --; a run elsewhere is lost with its host"
        )
    if options.tpu and options.gpus:
        raise ValueError(f"--tpu={options.tpu} --gpus={options.gpus}: a host has TPUs or GPUs, not both; leave one out")
    if options.tpu and not re.fullmatch(r"[^:]+:\d+(x\d+)+", options.tpu):
        raise ValueError(f"--tpu={options.tpu}: give the accelerator and its topology, as tpu-v5-lite-podslice:4x4")


def manifest(options: argparse.Namespace) -> dict:
    """Returns the JobSet in the form that Kubernetes reads."""
    coordinator = f"{options.name}-host-0-0.{options.name}:{PORT}"
    join = f"--processes={options.hosts} --process=$JOB_COMPLETION_INDEX --coordinator={coordinator}"
    command = f"exec python -m jaxmarks.main {join if options.hosts > 1 else ''} {shlex.join(options.arguments)}"
    limits = {"nvidia.com/gpu": options.gpus} if options.gpus else {}
    nodes = {}
    if options.tpu:
        accelerator, _, topology = options.tpu.partition(":")
        limits = {"google.com/tpu": options.chips}
        nodes = {"cloud.google.com/gke-tpu-accelerator": accelerator, "cloud.google.com/gke-tpu-topology": topology}
    container = {
        "name": "jaxmarks",
        "image": options.image,
        "command": ["sh", "-c", command],
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": limits},
        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
    }
    pod = {
        "restartPolicy": "Never",
        "nodeSelector": nodes,
        "terminationGracePeriodSeconds": 120,
        "containers": [container],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": options.claim}}],
    }
    count = {"parallelism": options.hosts, "completions": options.hosts, "completionMode": "Indexed", "backoffLimit": 0}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": options.name},
        "spec": {
            "failurePolicy": {"maxRestarts": options.restarts},
            "network": {"enableDNSHostnames": True},
            "replicatedJobs": [
                {"name": "host", "replicas": 1, "template": {"spec": count | {"template": {"spec": pod}}}}
            ],
        },
    }


if __name__ == "__main__":
    sys.exit(main())
