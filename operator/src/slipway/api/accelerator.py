"""spec.accelerator: which GPUs (or other devices) a model needs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from slipway.api.common import ATOMIC, ObjectName
from slipway.api.rules import ApiModel, Rule, matches

# The label that a vendor's discovery writes on nodes, by the domain of the resource name; sources: docs/design/0009-accelerators.md.
PRODUCT_LABELS = {"nvidia.com": "nvidia.com/gpu.product", "amd.com": "amd.com/gpu.product-name", "gpu.intel.com": "gpu.intel.com/product"}

Selector = Annotated[str, Field(min_length=1, max_length=2048)]


def _knows_product(wish: Accelerator) -> bool:
    return wish.product is None or (wish.resource_name or "").partition("/")[0] in PRODUCT_LABELS


class Accelerator(ApiModel):
    """Devices for each serving pod, and for conversions that build for them; by resourceName or, with DRA, by deviceClassName."""

    rules = (
        Rule(
            "has(self.resourceName) != has(self.deviceClassName)",
            "name the devices by exactly one of resourceName (a device plugin's, for example nvidia.com/gpu) and deviceClassName (DRA)",
            lambda wish: (wish.resource_name is None) != (wish.device_class_name is None),
        ),
        Rule(
            "!has(self.selectors) || has(self.deviceClassName)",
            "selectors need deviceClassName: only DRA can look into devices; with resourceName use product",
            lambda wish: wish.selectors is None or wish.device_class_name is not None,
        ),
        Rule(
            "!has(self.product) || (has(self.resourceName) && "
            "self.resourceName.split('/')[0] in ['nvidia.com', 'amd.com', 'gpu.intel.com'])",
            "product needs a resourceName of nvidia.com, amd.com or gpu.intel.com; for other devices use serving.nodeSelector, with DRA "
            "selectors",
            _knows_product,
        ),
    )

    resource_name: (
        Annotated[
            str,
            Field(max_length=253),
            matches(
                r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?",
                "a resource name is domain/name, as the device plugin advertises it; for example nvidia.com/gpu or nvidia.com/mig-1g.10gb",
            ),
        ]
        | None
    ) = Field(default=None, description="Resource of a device plugin. Example: nvidia.com/gpu, nvidia.com/mig-1g.10gb, amd.com/gpu.")
    count: int = Field(default=1, ge=1, le=64, description="Devices for each pod. A count. Default: 1.")
    product: (
        Annotated[
            str,
            Field(max_length=63),
            matches(
                r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?",
                "the product is the value of the node's label, for example NVIDIA-H200; `kubectl get nodes -L nvidia.com/gpu.product` "
                "lists them",
            ),
        ]
        | None
    ) = Field(
        default=None,
        description="Value that the node's label nvidia.com/gpu.product, amd.com/gpu.product-name or gpu.intel.com/product must have. "
        "Example: NVIDIA-H200. Default: any.",
    )
    device_class_name: ObjectName | None = Field(
        default=None, description="DeviceClass, for Dynamic Resource Allocation. Example: gpu.nvidia.com."
    )
    selectors: Annotated[tuple[Selector, ...], Field(min_length=1, max_length=16, json_schema_extra=ATOMIC)] | None = Field(
        default=None,
        description="CEL expressions that a device must meet. Example: "
        "[\"device.capacity['gpu.nvidia.com'].memory.compareTo(quantity('20Gi')) >= 0\"]. Default: any device of the class.",
    )
