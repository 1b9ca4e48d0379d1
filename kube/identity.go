package kube

import (
	"encoding/binary"
	"hash/fnv"
	"io"
	"maps"
	"slices"
	"strings"
)

// volatileLabels change from one copy of a pod to the next and say nothing
// about what it is.
func volatileLabels() []string {
	return []string{
		"pod-template-hash", "pod-template-generation", "controller-revision-hash", "controller-uid", "job-name",
		"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index",
	}
}

// volatilePrefix begins the labels that a Job gives to its pods.
const volatilePrefix = "batch.kubernetes.io/"

// stable returns labels without the volatile ones; nil if none is left.
func stable(labels map[string]string) map[string]string {
	var out map[string]string
	volatile := volatileLabels()
	for k, v := range labels {
		if strings.HasPrefix(k, volatilePrefix) || slices.Contains(volatile, k) {
			continue
		}
		if out == nil {
			out = make(map[string]string, len(labels))
		}
		out[k] = v
	}
	return out
}

// Identity hashes a namespace, its labels and a pod's stable labels by FNV-1a
// over length-prefixed, sorted fields: equal wherever it is computed.
func Identity(namespace string, namespaceLabels, podLabels map[string]string) uint64 {
	h := fnv.New64a()
	field := func(s string) {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(s)))) // a hash never fails
		_, _ = io.WriteString(h, s)
	}
	field(namespace)
	for _, labels := range []map[string]string{namespaceLabels, podLabels} {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(labels))))
		for _, k := range slices.Sorted(maps.Keys(labels)) {
			field(k)
			field(labels[k])
		}
	}
	return h.Sum64()
}
