package kube

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// The objects here are as an API server sends them for a common Deployment:
// two containers with probes, resources and a mounted token, and what
// controllers and kubelet wrote. docs/scale.md computes with their sizes.

const uid = "0f5c9a3e-7d54-4f0c-9b1f-1c6f3a2b7d11"

// managed is what managedFields say of one writer: about 30 bytes a field.
func managed(manager, subresource string, fields int) metav1.ManagedFieldsEntry {
	raw := `{"f:spec":{` + strings.TrimSuffix(strings.Repeat(`"f:terminationMessagePath":{},`, fields), ",") + `}}`
	return metav1.ManagedFieldsEntry{
		Manager: manager, Operation: "Update", APIVersion: "v1", Time: apiTime(0), FieldsType: "FieldsV1",
		FieldsV1: metav1.NewFieldsV1(raw), Subresource: subresource,
	}
}

func wirePod(i int) *corev1.Pod {
	p := syntheticPod(i)
	yes := true
	seconds := int64(300)
	p.GenerateName, p.ResourceVersion = "service-0-5d9c7b6f4d-", "123456789"
	p.OwnerReferences[0].UID, p.OwnerReferences[0].BlockOwnerDeletion = uid, &yes
	p.ManagedFields = []metav1.ManagedFieldsEntry{managed("kube-controller-manager", "", 45), managed("kubelet", "status", 30)}
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromString("http"), Scheme: "HTTP"}}, TimeoutSeconds: 1, PeriodSeconds: 10, SuccessThreshold: 1, FailureThreshold: 3}
	mount := corev1.VolumeMount{Name: "kube-api-access-x7x2q", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}
	p.Spec.Containers, p.Status.ContainerStatuses = nil, nil
	for c := range 2 {
		container := corev1.Container{
			Name: fmt.Sprintf("container-%d", c), Image: "registry.example.com/team/product/service:1.2.3",
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: "TCP"}}, LivenessProbe: probe, ReadinessProbe: probe,
			VolumeMounts: []corev1.VolumeMount{mount}, TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: "File", ImagePullPolicy: "IfNotPresent",
		}
		for e := range 8 {
			container.Env = append(container.Env, corev1.EnvVar{Name: fmt.Sprintf("SERVICE_SETTING_%d", e), Value: "http://other-service.team-12.svc.cluster.local:8080"})
		}
		p.Spec.Containers = append(p.Spec.Containers, container)
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: container.Name, Ready: true, Started: &yes, Image: container.Image, ImageID: container.Image + "@sha256:" + strings.Repeat("ab", 32),
			ContainerID: "containerd://" + strings.Repeat("cd", 32), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: *apiTime(0)}},
		})
	}
	p.Spec.Volumes = []corev1.Volume{{Name: mount.Name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: &seconds, Path: "token"}},
		{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
	}}}}}
	p.Spec.ServiceAccountName, p.Spec.DNSPolicy, p.Spec.RestartPolicy, p.Spec.SchedulerName = "default", "ClusterFirst", "Always", "default-scheduler"
	for _, key := range []string{"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"} {
		p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: key, Operator: "Exists", Effect: "NoExecute", TolerationSeconds: &seconds})
	}
	for _, c := range []corev1.PodConditionType{"PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: c, Status: "True", LastTransitionTime: *apiTime(0)})
	}
	p.Status.HostIP, p.Status.QOSClass = "192.168.0.1", "Burstable"
	return p
}

func wireNode() *corev1.Node {
	n := syntheticNode(0)
	n.UID, n.ResourceVersion, n.Labels, n.Annotations = uid, "123456789", map[string]string{}, map[string]string{}
	for i := range 12 {
		n.Labels[fmt.Sprintf("topology.kubernetes.io/label-%d", i)] = "some-value-of-it"
	}
	for i := range 4 {
		n.Annotations[fmt.Sprintf("csi.volume.kubernetes.io/note-%d", i)] = strings.Repeat("x", 60)
	}
	n.ManagedFields = []metav1.ManagedFieldsEntry{managed("kube-controller-manager", "", 15), managed("kubelet", "", 30), managed("kubelet", "status", 40)}
	for i := range 50 {
		name := fmt.Sprintf("registry.example.com/team/product/service-%d", i)
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{name + "@sha256:" + strings.Repeat("ab", 32), name + ":1.2.3"}, SizeBytes: 123456789})
	}
	for _, c := range []corev1.NodeConditionType{"MemoryPressure", "DiskPressure", "PIDPressure", "Ready"} {
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{
			Type: c, Status: "False", Reason: "KubeletHasNoPressure", Message: "kubelet has sufficient memory available", LastHeartbeatTime: *apiTime(0), LastTransitionTime: *apiTime(0),
		})
	}
	return n
}

func wireService() *corev1.Service {
	s := syntheticService(0)
	s.UID, s.ResourceVersion, s.Labels = uid, "123456789", syntheticPod(0).Labels
	s.ManagedFields = []metav1.ManagedFieldsEntry{managed("kubectl-client-side-apply", "", 15)}
	s.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": strings.Repeat("x", 400)}
	return s
}

func wireSlice() *discoveryv1.EndpointSlice {
	yes, node, port, name, tcp := true, "node-17", int32(8080), "http", corev1.ProtocolTCP
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "team-12", Name: "service-12-x7x2q", UID: uid, ResourceVersion: "123456789", Labels: syntheticPod(0).Labels,
			ManagedFields: []metav1.ManagedFieldsEntry{managed("kube-controller-manager", "", 12)},
		},
		AddressType: "IPv4", Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &tcp}},
	}
	for i := range 15 {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{syntheticAddr(i).String()}, Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes}, NodeName: &node,
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "team-12", Name: syntheticPod(i).Name, UID: uid},
		})
	}
	return s
}

func wireMetadata() *metav1.PartialObjectMetadata {
	yes := true
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Namespace: "team-12", Name: "service-12-5d9c7b6f4d", UID: types.UID(uid), ResourceVersion: "123456789", Labels: syntheticPod(0).Labels,
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "Deployment", Name: "service-12", UID: uid, Controller: &yes}},
		Annotations:     map[string]string{"deployment.kubernetes.io/desired-replicas": "15", "deployment.kubernetes.io/max-replicas": "19", "deployment.kubernetes.io/revision": "3"},
		ManagedFields:   []metav1.ManagedFieldsEntry{managed("kube-controller-manager", "", 45), managed("kube-controller-manager", "status", 6)},
	}}
}

// BenchmarkObjectSizes tells how large objects are on the wire.
func BenchmarkObjectSizes(b *testing.B) {
	for b.Loop() {
		wirePod(0)
	}
	for unit, o := range map[string]interface{ Size() int }{
		"B/pod": wirePod(0), "B/node": wireNode(), "B/service": wireService(), "B/slice": wireSlice(), "B/metadata": wireMetadata(),
	} {
		b.ReportMetric(float64(o.Size()), unit)
	}
}
