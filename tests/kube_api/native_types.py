"""The fields of built-in kinds and their types, as Go's types of Kubernetes 1.32 have them.

A line is a type: `field=s` text, `i` integer, `b` truth value, `q` integer or text, `*` anything, `M` metadata, else
the name of a type; `[...]` a list of it, `{...}` a map to it. Volumes that nobody here uses are left open.
"""

from __future__ import annotations

from typing import Any

from kube_api.kinds import Kind
from kube_api.statuses import bad_request

_TEXT = """
Namespace: spec=NamespaceSpec status=NamespaceStatus
NamespaceSpec: finalizers=[s]
NamespaceStatus: phase=s conditions=[NamespaceCondition]
NamespaceCondition: type=s status=s lastTransitionTime=s reason=s message=s
Pod: spec=PodSpec status=PodStatus
PodSpec: volumes=[Volume] initContainers=[Container] containers=[Container] ephemeralContainers=[EphemeralContainer]
  restartPolicy=s terminationGracePeriodSeconds=i activeDeadlineSeconds=i dnsPolicy=s nodeSelector={s}
  serviceAccountName=s serviceAccount=s automountServiceAccountToken=b nodeName=s hostNetwork=b hostPID=b hostIPC=b
  shareProcessNamespace=b securityContext=PodSecurityContext imagePullSecrets=[LocalObjectReference] hostname=s
  subdomain=s affinity=Affinity schedulerName=s tolerations=[Toleration] hostAliases=[HostAlias] priorityClassName=s
  priority=i dnsConfig=PodDNSConfig readinessGates=[PodReadinessGate] runtimeClassName=s enableServiceLinks=b
  preemptionPolicy=s overhead={q} topologySpreadConstraints=[TopologySpreadConstraint] setHostnameAsFQDN=b os=PodOS
  hostUsers=b schedulingGates=[PodSchedulingGate] resourceClaims=[*] resources=ResourceRequirements
Volume: name=s hostPath=HostPathVolumeSource emptyDir=EmptyDirVolumeSource gcePersistentDisk=*
  awsElasticBlockStore=* gitRepo=* secret=SecretVolumeSource nfs=* iscsi=* glusterfs=* persistentVolumeClaim=* rbd=*
  flexVolume=* cinder=* cephfs=* flocker=* downwardAPI=DownwardAPIVolumeSource fc=* azureFile=*
  configMap=ConfigMapVolumeSource vsphereVolume=* quobyte=* azureDisk=* photonPersistentDisk=*
  projected=ProjectedVolumeSource portworxVolume=* scaleIO=* storageos=* csi=* ephemeral=* image=*
HostPathVolumeSource: path=s type=s
EmptyDirVolumeSource: medium=s sizeLimit=q
SecretVolumeSource: secretName=s items=[KeyToPath] defaultMode=i optional=b
KeyToPath: key=s path=s mode=i
DownwardAPIVolumeSource: items=[DownwardAPIVolumeFile] defaultMode=i
DownwardAPIVolumeFile: path=s fieldRef=ObjectFieldSelector resourceFieldRef=ResourceFieldSelector mode=i
ObjectFieldSelector: apiVersion=s fieldPath=s
ResourceFieldSelector: containerName=s resource=s divisor=q
ConfigMapVolumeSource: name=s items=[KeyToPath] defaultMode=i optional=b
ProjectedVolumeSource: sources=[VolumeProjection] defaultMode=i
VolumeProjection: secret=SecretProjection downwardAPI=DownwardAPIProjection configMap=ConfigMapProjection
  serviceAccountToken=ServiceAccountTokenProjection clusterTrustBundle=*
SecretProjection: name=s items=[KeyToPath] optional=b
DownwardAPIProjection: items=[DownwardAPIVolumeFile]
ConfigMapProjection: name=s items=[KeyToPath] optional=b
ServiceAccountTokenProjection: audience=s expirationSeconds=i path=s
Container: name=s image=s command=[s] args=[s] workingDir=s ports=[ContainerPort] envFrom=[EnvFromSource]
  env=[EnvVar] resources=ResourceRequirements resizePolicy=[ContainerResizePolicy] restartPolicy=s
  volumeMounts=[VolumeMount] volumeDevices=[VolumeDevice] livenessProbe=Probe readinessProbe=Probe
  startupProbe=Probe lifecycle=Lifecycle terminationMessagePath=s terminationMessagePolicy=s imagePullPolicy=s
  securityContext=SecurityContext stdin=b stdinOnce=b tty=b
ContainerPort: name=s hostPort=i containerPort=i protocol=s hostIP=s
EnvFromSource: prefix=s configMapRef=ConfigMapEnvSource secretRef=SecretEnvSource
ConfigMapEnvSource: name=s optional=b
SecretEnvSource: name=s optional=b
EnvVar: name=s value=s valueFrom=EnvVarSource
EnvVarSource: fieldRef=ObjectFieldSelector resourceFieldRef=ResourceFieldSelector
  configMapKeyRef=ConfigMapKeySelector secretKeyRef=SecretKeySelector
ConfigMapKeySelector: name=s key=s optional=b
SecretKeySelector: name=s key=s optional=b
ResourceRequirements: limits={q} requests={q} claims=[ResourceClaim]
ResourceClaim: name=s request=s
ContainerResizePolicy: resourceName=s restartPolicy=s
VolumeMount: name=s readOnly=b recursiveReadOnly=s mountPath=s subPath=s mountPropagation=s subPathExpr=s
VolumeDevice: name=s devicePath=s
Probe: exec=ExecAction httpGet=HTTPGetAction tcpSocket=TCPSocketAction grpc=GRPCAction initialDelaySeconds=i
  timeoutSeconds=i periodSeconds=i successThreshold=i failureThreshold=i terminationGracePeriodSeconds=i
ExecAction: command=[s]
HTTPGetAction: path=s port=q host=s scheme=s httpHeaders=[HTTPHeader]
HTTPHeader: name=s value=s
TCPSocketAction: port=q host=s
GRPCAction: port=i service=s
Lifecycle: postStart=LifecycleHandler preStop=LifecycleHandler
LifecycleHandler: exec=ExecAction httpGet=HTTPGetAction tcpSocket=TCPSocketAction sleep=SleepAction
SleepAction: seconds=i
SecurityContext: capabilities=Capabilities privileged=b seLinuxOptions=SELinuxOptions windowsOptions=* runAsUser=i
  runAsGroup=i runAsNonRoot=b readOnlyRootFilesystem=b allowPrivilegeEscalation=b procMount=s
  seccompProfile=SeccompProfile appArmorProfile=AppArmorProfile
Capabilities: add=[s] drop=[s]
SELinuxOptions: user=s role=s type=s level=s
SeccompProfile: type=s localhostProfile=s
AppArmorProfile: type=s localhostProfile=s
EphemeralContainer: name=s image=s command=[s] args=[s] workingDir=s ports=[ContainerPort] envFrom=[EnvFromSource]
  env=[EnvVar] resources=ResourceRequirements resizePolicy=[ContainerResizePolicy] restartPolicy=s
  volumeMounts=[VolumeMount] volumeDevices=[VolumeDevice] livenessProbe=Probe readinessProbe=Probe
  startupProbe=Probe lifecycle=Lifecycle terminationMessagePath=s terminationMessagePolicy=s imagePullPolicy=s
  securityContext=SecurityContext stdin=b stdinOnce=b tty=b targetContainerName=s
PodSecurityContext: seLinuxOptions=SELinuxOptions windowsOptions=* runAsUser=i runAsGroup=i runAsNonRoot=b
  supplementalGroups=[i] supplementalGroupsPolicy=s fsGroup=i sysctls=[Sysctl] fsGroupChangePolicy=s
  seccompProfile=SeccompProfile appArmorProfile=AppArmorProfile seLinuxChangePolicy=s
Sysctl: name=s value=s
LocalObjectReference: name=s
Affinity: nodeAffinity=NodeAffinity podAffinity=PodAffinity podAntiAffinity=PodAntiAffinity
NodeAffinity: requiredDuringSchedulingIgnoredDuringExecution=NodeSelector
  preferredDuringSchedulingIgnoredDuringExecution=[PreferredSchedulingTerm]
NodeSelector: nodeSelectorTerms=[NodeSelectorTerm]
NodeSelectorTerm: matchExpressions=[NodeSelectorRequirement] matchFields=[NodeSelectorRequirement]
NodeSelectorRequirement: key=s operator=s values=[s]
PreferredSchedulingTerm: weight=i preference=NodeSelectorTerm
PodAffinity: requiredDuringSchedulingIgnoredDuringExecution=[PodAffinityTerm]
  preferredDuringSchedulingIgnoredDuringExecution=[WeightedPodAffinityTerm]
PodAffinityTerm: labelSelector=LabelSelector namespaces=[s] topologyKey=s namespaceSelector=LabelSelector
  matchLabelKeys=[s] mismatchLabelKeys=[s]
WeightedPodAffinityTerm: weight=i podAffinityTerm=PodAffinityTerm
PodAntiAffinity: requiredDuringSchedulingIgnoredDuringExecution=[PodAffinityTerm]
  preferredDuringSchedulingIgnoredDuringExecution=[WeightedPodAffinityTerm]
Toleration: key=s operator=s value=s effect=s tolerationSeconds=i
HostAlias: ip=s hostnames=[s]
PodDNSConfig: nameservers=[s] searches=[s] options=[PodDNSConfigOption]
PodDNSConfigOption: name=s value=s
PodReadinessGate: conditionType=s
TopologySpreadConstraint: maxSkew=i topologyKey=s whenUnsatisfiable=s labelSelector=LabelSelector minDomains=i
  nodeAffinityPolicy=s nodeTaintsPolicy=s matchLabelKeys=[s]
PodOS: name=s
PodSchedulingGate: name=s
PodStatus: phase=s conditions=[PodCondition] message=s reason=s nominatedNodeName=s hostIP=s hostIPs=[HostIP]
  podIP=s podIPs=[PodIP] startTime=s initContainerStatuses=[*] containerStatuses=[*] qosClass=s
  ephemeralContainerStatuses=[*] resize=s resourceClaimStatuses=[*]
PodCondition: type=s status=s lastProbeTime=s lastTransitionTime=s reason=s message=s
HostIP: ip=s
PodIP: ip=s
Node: spec=NodeSpec status=NodeStatus
NodeSpec: podCIDR=s podCIDRs=[s] providerID=s unschedulable=b taints=[Taint] configSource=* externalID=s
Taint: key=s value=s effect=s timeAdded=s
NodeStatus: capacity={q} allocatable={q} phase=s conditions=[NodeCondition] addresses=[NodeAddress]
  daemonEndpoints=NodeDaemonEndpoints nodeInfo=* images=[ContainerImage] volumesInUse=[s]
  volumesAttached=[AttachedVolume] config=* runtimeHandlers=[*] features=*
NodeCondition: type=s status=s lastHeartbeatTime=s lastTransitionTime=s reason=s message=s
NodeAddress: type=s address=s
NodeDaemonEndpoints: kubeletEndpoint=DaemonEndpoint
DaemonEndpoint: Port=i
ContainerImage: names=[s] sizeBytes=i
AttachedVolume: name=s devicePath=s
Service: spec=ServiceSpec status=ServiceStatus
ServiceSpec: ports=[ServicePort] selector={s} clusterIP=s clusterIPs=[s] type=s externalIPs=[s] sessionAffinity=s
  loadBalancerIP=s loadBalancerSourceRanges=[s] externalName=s externalTrafficPolicy=s healthCheckNodePort=i
  publishNotReadyAddresses=b sessionAffinityConfig=SessionAffinityConfig ipFamilies=[s] ipFamilyPolicy=s
  allocateLoadBalancerNodePorts=b loadBalancerClass=s internalTrafficPolicy=s trafficDistribution=s
ServicePort: name=s protocol=s appProtocol=s port=i targetPort=q nodePort=i
SessionAffinityConfig: clientIP=ClientIPConfig
ClientIPConfig: timeoutSeconds=i
ServiceStatus: loadBalancer=LoadBalancerStatus conditions=[Condition]
LoadBalancerStatus: ingress=[LoadBalancerIngress]
LoadBalancerIngress: ip=s hostname=s ipMode=s ports=[PortStatus]
PortStatus: port=i protocol=s error=s
ServiceAccount: secrets=[ObjectReference] imagePullSecrets=[LocalObjectReference] automountServiceAccountToken=b
ObjectReference: kind=s namespace=s name=s uid=s apiVersion=s resourceVersion=s fieldPath=s
Secret: immutable=b data={s} stringData={s} type=s
ConfigMap: immutable=b data={s} binaryData={s}
Endpoints: subsets=[EndpointSubset]
EndpointSubset: addresses=[EndpointAddress] notReadyAddresses=[EndpointAddress] ports=[EndpointPort]
EndpointAddress: ip=s hostname=s nodeName=s targetRef=ObjectReference
EndpointPort: name=s port=i protocol=s appProtocol=s
Event: involvedObject=ObjectReference reason=s message=s source=EventSource firstTimestamp=s lastTimestamp=s count=i
  type=s eventTime=s series=EventSeries action=s related=ObjectReference reportingComponent=s reportingInstance=s
EventSource: component=s host=s
EventSeries: count=i lastObservedTime=s
DaemonSet: spec=DaemonSetSpec status=DaemonSetStatus
DaemonSetSpec: selector=LabelSelector template=PodTemplateSpec updateStrategy=DaemonSetUpdateStrategy
  minReadySeconds=i revisionHistoryLimit=i
PodTemplateSpec: metadata=M spec=PodSpec
DaemonSetUpdateStrategy: type=s rollingUpdate=RollingUpdateDaemonSet
RollingUpdateDaemonSet: maxUnavailable=q maxSurge=q
DaemonSetStatus: currentNumberScheduled=i numberMisscheduled=i desiredNumberScheduled=i numberReady=i
  observedGeneration=i updatedNumberScheduled=i numberAvailable=i numberUnavailable=i collisionCount=i
  conditions=[DaemonSetCondition]
DaemonSetCondition: type=s status=s lastTransitionTime=s reason=s message=s
Deployment: spec=DeploymentSpec status=DeploymentStatus
DeploymentSpec: replicas=i selector=LabelSelector template=PodTemplateSpec strategy=DeploymentStrategy
  minReadySeconds=i revisionHistoryLimit=i paused=b progressDeadlineSeconds=i
DeploymentStrategy: type=s rollingUpdate=RollingUpdateDeployment
RollingUpdateDeployment: maxUnavailable=q maxSurge=q
DeploymentStatus: observedGeneration=i replicas=i updatedReplicas=i readyReplicas=i availableReplicas=i
  unavailableReplicas=i conditions=[DeploymentCondition] collisionCount=i
DeploymentCondition: type=s status=s lastUpdateTime=s lastTransitionTime=s reason=s message=s
EndpointSlice: addressType=s endpoints=[Endpoint] ports=[EndpointPort]
Endpoint: addresses=[s] conditions=EndpointConditions hostname=s targetRef=ObjectReference deprecatedTopology={s}
  nodeName=s zone=s hints=EndpointHints
EndpointConditions: ready=b serving=b terminating=b
EndpointHints: forZones=[ForZone]
ForZone: name=s
NetworkPolicy: spec=NetworkPolicySpec
NetworkPolicySpec: podSelector=LabelSelector ingress=[NetworkPolicyIngressRule] egress=[NetworkPolicyEgressRule]
  policyTypes=[s]
NetworkPolicyIngressRule: ports=[NetworkPolicyPort] from=[NetworkPolicyPeer]
NetworkPolicyPort: protocol=s port=q endPort=i
NetworkPolicyPeer: podSelector=LabelSelector namespaceSelector=LabelSelector ipBlock=IPBlock
IPBlock: cidr=s except=[s]
NetworkPolicyEgressRule: ports=[NetworkPolicyPort] to=[NetworkPolicyPeer]
Lease: spec=LeaseSpec
LeaseSpec: holderIdentity=s leaseDurationSeconds=i acquireTime=s renewTime=s leaseTransitions=i strategy=s
  preferredHolder=s
PodDisruptionBudget: spec=PodDisruptionBudgetSpec status=PodDisruptionBudgetStatus
PodDisruptionBudgetSpec: minAvailable=q selector=LabelSelector maxUnavailable=q unhealthyPodEvictionPolicy=s
PodDisruptionBudgetStatus: observedGeneration=i disruptedPods={s} disruptionsAllowed=i currentHealthy=i
  desiredHealthy=i expectedPods=i conditions=[Condition]
PriorityClass: value=i globalDefault=b description=s preemptionPolicy=s
ClusterRole: rules=[PolicyRule] aggregationRule=AggregationRule
PolicyRule: verbs=[s] apiGroups=[s] resources=[s] resourceNames=[s] nonResourceURLs=[s]
AggregationRule: clusterRoleSelectors=[LabelSelector]
ClusterRoleBinding: subjects=[Subject] roleRef=RoleRef
Subject: kind=s apiGroup=s name=s namespace=s
RoleRef: apiGroup=s kind=s name=s
Role: rules=[PolicyRule]
RoleBinding: subjects=[Subject] roleRef=RoleRef
LabelSelector: matchLabels={s} matchExpressions=[LabelSelectorRequirement]
LabelSelectorRequirement: key=s operator=s values=[s]
Condition: type=s status=s observedGeneration=i lastTransitionTime=s reason=s message=s
"""


def _types() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    own: dict[str, str] = {}
    for word in _TEXT.split():
        if word.endswith(":"):
            own = found[word[:-1]] = {}
        else:
            name, _, code = word.partition("=")
            own[name] = code
    return found


TYPES = _types()
_PLAIN: dict[str, tuple[tuple[type, ...], str]] = {
    "s": ((str,), "string"),
    "i": ((int,), "int32"),
    "b": ((bool,), "bool"),
    "q": ((int, float, str), "intstr.IntOrString"),
}
_GO = {str: "string", bool: "bool", int: "number", float: "number", dict: "object", list: "array"}


def check(kind: Kind, obj: dict[str, Any], undecodable: str) -> list[str]:
    """Drop nulls and what the type does not know, whose paths are returned. Raises Refusal (400) for a wrong type."""
    try:
        if undecodable:
            raise TypeError(undecodable)
        inner = {name: value for name, value in obj.items() if name not in ("apiVersion", "kind", "metadata")}
        unknown = _struct(kind.kind, inner, "")
    except TypeError as error:
        raise bad_request(
            f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {error}'
        ) from None
    for name in set(obj) - {"apiVersion", "kind", "metadata"}:
        del obj[name]
    obj |= inner
    return unknown


def _struct(name: str, value: dict[str, Any], path: str) -> list[str]:
    unknown: list[str] = []
    fields = TYPES[name]
    for field in list(value):
        place = f"{path}.{field}" if path else field
        code = fields.get(field)
        if code is None:
            del value[field]
            unknown.append(place)
        elif value[field] is None:
            del value[field]
        else:
            unknown += _value(code, value[field], place, name)
    return unknown


def _value(code: str, value: Any, path: str, owner: str) -> list[str]:
    if code in ("*", "M"):
        return []
    if code[0] == "[":
        if not isinstance(value, list):
            raise _wrong(value, path, owner, "[]" + code[1:-1])
        return [
            one
            for number, item in enumerate(value)
            if item is not None
            for one in _value(code[1:-1], item, f"{path}[{number}]", owner)
        ]
    if code[0] == "{":
        if not isinstance(value, dict):
            raise _wrong(value, path, owner, "map[string]string")
        return [one for key, item in value.items() for one in _value(code[1:-1], item, f"{path}.{key}", owner)]
    if code in _PLAIN:
        wanted, shown = _PLAIN[code]
        if not isinstance(value, wanted) or (isinstance(value, bool) and code != "b"):
            raise _wrong(value, path, owner, shown)
        return []
    if not isinstance(value, dict):
        raise _wrong(value, path, owner, f"v1.{code}")
    return _struct(code, value, path)


def _wrong(value: Any, path: str, owner: str, wanted: str) -> TypeError:
    got = _GO.get(type(value), "null")
    return TypeError(f"json: cannot unmarshal {got} into Go struct field {owner}.{path} of type {wanted}")
