package clickhouse

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/flowaudit/flowaudit/collector/store/columns"
	"github.com/flowaudit/flowaudit/flow"
)

// knownKeys are the keys that this collector has written, by slot: each slot
// has its own, so that it can be dropped whole.
type knownKeys map[uint32]map[uint64]struct{}

// maxKnown bounds the memory of known keys. Writing one again is harmless.
const maxKnown = 4_000_000

// of are the keys of a slot; earlier slots get no more of them.
func (k knownKeys) of(slot uint32) map[uint64]struct{} {
	for other := range k {
		if other != slot {
			delete(k, other)
		}
	}
	if k[slot] == nil || len(k[slot]) > maxKnown {
		k[slot] = make(map[uint64]struct{})
	}
	return k[slot]
}

// keyHasher makes ids of the keys of a batch's flows. Flows of a batch share
// ends, Services and lists of policies by pointer, so that texts are looked at
// once a batch.
type keyHasher struct {
	ends     map[*flow.Endpoint]uint64
	services map[*flow.Service]uint64
	policies map[*flow.PolicyRef]uint64
	cluster  string
	node     string
	origin   uint64
}

func newKeyHasher() *keyHasher {
	return &keyHasher{ends: make(map[*flow.Endpoint]uint64), services: make(map[*flow.Service]uint64), policies: make(map[*flow.PolicyRef]uint64)}
}

// reset forgets the batch, and keeps the memory.
func (k *keyHasher) reset() {
	clear(k.ends)
	clear(k.services)
	clear(k.policies)
	k.origin = 0
}

// mix adds a value to a hash (the finalizer of splitmix64).
func mix(h, v uint64) uint64 {
	h += 0x9e3779b97f4a7c15 + v
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// textHash hashes texts, each by itself.
func textHash(texts ...string) uint64 {
	var h uint64
	for _, t := range texts {
		h = mix(h, xxhash.Sum64String(t))
	}
	return h
}

// labelHash hashes labels, in whatever order they come.
func labelHash(labels map[string]string) uint64 {
	var h uint64
	for k, v := range labels {
		h += mix(xxhash.Sum64String(k), xxhash.Sum64String(v))
	}
	return mix(h, uint64(len(labels)))
}

func addrHash(a netip.Addr) uint64 {
	if !a.IsValid() {
		return 0
	}
	b := a.As16()
	return mix(mix(1, binary.BigEndian.Uint64(b[:8])), binary.BigEndian.Uint64(b[8:]))
}

func (k *keyHasher) end(addr netip.Addr, e *flow.Endpoint) uint64 {
	if e == nil {
		return addrHash(addr)
	}
	id, ok := k.ends[e]
	if !ok {
		id = mix(mix(uint64(e.Kind), e.Identity), textHash(e.Namespace, e.Pod, e.Workload.Kind, e.Workload.Name, e.Node))
		id = mix(mix(id, labelHash(e.Labels)), textHash(e.Candidates...))
		k.ends[e] = id
	}
	return mix(addrHash(addr), id)
}

func (k *keyHasher) service(s *flow.Service) uint64 {
	if s == nil {
		return 0
	}
	id, ok := k.services[s]
	if !ok {
		id = mix(mix(addrHash(s.Addr), uint64(s.Port)), textHash(s.Namespace, s.Name))
		k.services[s] = id
	}
	return id
}

func (k *keyHasher) policiesOf(refs []flow.PolicyRef) uint64 {
	if len(refs) == 0 {
		return 0
	}
	id, ok := k.policies[&refs[0]]
	if !ok {
		id = textHash(columns.PoliciesText(refs))
		k.policies[&refs[0]] = id
	}
	return mix(id, uint64(len(refs)))
}

// id is the hash of all that a row of the table key says.
func (k *keyHasher) id(f *flow.Flow) uint64 {
	if k.origin == 0 || f.Cluster != k.cluster || f.Node != k.node {
		k.cluster, k.node, k.origin = f.Cluster, f.Node, textHash(f.Cluster, f.Node)
	}
	h := mix(k.origin, k.end(f.Src, f.Source))
	h = mix(h, k.end(f.Dst, f.Destination))
	h = mix(h, k.service(f.Service))
	h = mix(h, k.policiesOf(f.Policies))
	if f.TranslatedSrc.IsValid() {
		h = mix(h, addrHash(f.TranslatedSrc))
	}
	h = mix(h, uint64(f.Protocol)|uint64(f.Port)<<8|uint64(f.Verdict)<<24|uint64(f.Direction)<<32|uint64(f.Reason)<<40|uint64(f.Expected)<<48|uint64(f.Assessment)<<56)
	return mix(h, uint64(f.Caveat)|uint64(f.Sources)<<8)
}

const keyColumns = `slot, id, pair, cluster, node, protocol, port, verdict, direction, reason, expected, assessment, caveat, sources, translated,
	src_addr, src_ip, src_kind, src_namespace, src_pod, src_workload_kind, src_workload, src_node, src_identity, src_labels, src_candidates,
	dst_addr, dst_ip, dst_kind, dst_namespace, dst_pod, dst_workload_kind, dst_workload, dst_node, dst_identity, dst_labels, dst_candidates,
	service_addr, service_ip, service_port, service_namespace, service, policies, policy_names`

// keyRow is a row of the table key.
func keyRow(slot uint32, id uint64, f *flow.Flow) []any {
	row := []any{
		slot, id, columns.PairID(f), f.Cluster, f.Node, uint8(f.Protocol), f.Port, int8(f.Verdict), uint8(f.Direction), uint8(f.Reason),
		uint8(f.Expected), uint8(f.Assessment), uint8(f.Caveat), uint8(f.Sources), addrText16(f.TranslatedSrc),
	}
	row = append(append(row, endRow(f.Src, f.Source)...), endRow(f.Dst, f.Destination)...)
	var service flow.Service
	if f.Service != nil {
		service = *f.Service
	}
	return append(row, addrText16(service.Addr), addrText(service.Addr), service.Port, service.Namespace, service.Name,
		columns.PoliciesText(f.Policies), columns.PolicyNames(f.Policies))
}

func endRow(addr netip.Addr, e *flow.Endpoint) []any {
	if e == nil {
		e = &flow.Endpoint{}
	}
	return []any{
		addrText16(addr), addrText(addr), uint8(e.Kind), e.Namespace, e.Pod, e.Workload.Kind, e.Workload.Name, e.Node, e.Identity,
		columns.LabelText(e.Labels), strings.Join(e.Candidates, ","),
	}
}

// addrText16 is an address as it is compared: 16 bytes, or empty for none.
func addrText16(a netip.Addr) string { return string(columns.AddrBytes(a)) }

// addrText is an address as it is read; empty for none.
func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
