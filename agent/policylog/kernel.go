package policylog

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/flowaudit/flowaudit/agent/calico"
	"github.com/flowaudit/flowaudit/flow"
)

// Kernel reads what LOG rules (xt_LOG, nft log) write into the kernel's log,
// such as those of Calico's Log action. A LOG rule says nothing of a verdict:
// what its prefix stands for is a convention of those who write the policies.
type Kernel struct {
	prefix  string
	verdict flow.Verdict
	policy  *regexp.Regexp
}

// CalicoLogPrefix is how Calico's records begin unless logPrefix says otherwise.
const CalicoLogPrefix = "calico-packet"

// NewKernel reads records whose prefix contains a text, and gives them a verdict.
func NewKernel(prefix string, verdict flow.Verdict) *Kernel {
	return &Kernel{prefix, verdict, regexp.MustCompile(`(?:^|[ :])(` + strings.Join(calico.ShortKinds(), "|") + `)[ :]([^ :]+)`)}
}

// Parse reads a line; see tuple.go.
func (k *Kernel) Parse(line []byte, o *flow.Observation) (bool, error) {
	prefix, record, ok := strings.Cut(string(line), "IN=")
	if !ok || !strings.Contains(record, "SRC=") || !strings.Contains(prefix, k.prefix) {
		return false, nil
	}
	packet(o, k.verdict)
	o.Source = flow.SourceKernelLog
	// An ICMP error holds the packet that it is about, in brackets.
	record, _, _ = strings.Cut(record, "[")
	m := make(map[string]string)
	for _, f := range strings.Fields(record) {
		key, value, pair := strings.Cut(f, "=")
		if _, known := m[key]; pair && !known { // LEN is the packet's first, then UDP's
			m[key] = value
		}
		if !pair {
			o.TCPFlags |= kernelFlag(f)
		}
	}
	if err := tuple(o, m["PROTO"], m["SRC"], m["SPT"], m["DST"], m["DPT"]); err != nil {
		return false, err
	}
	if o.Protocol.IsICMP() {
		typ, err := strconv.ParseUint(m["TYPE"], 10, 8)
		code, err2 := strconv.ParseUint(m["CODE"], 10, 8)
		if err != nil || err2 != nil {
			return false, fmt.Errorf("ICMP type %.20q, code %.20q", m["TYPE"], m["CODE"])
		}
		o.ICMPType, o.ICMPCode = uint8(typ), uint8(code)
	}
	if n, err := strconv.ParseUint(m["LEN"], 10, 16); err == nil {
		o.Size = uint32(n)
	}
	if p, named := k.policyOf(prefix); named {
		o.Told = &flow.Told{Policies: []flow.PolicyRef{p}}
	}
	return true, sameFamily(o)
}

// kernelFlag reads the words that nf_log_dump_tcp_header writes.
func kernelFlag(s string) uint8 {
	for bit := range 8 {
		if flow.TCPFlagNames(1 << bit)[0] == s {
			return 1 << bit
		}
	}
	return 0
}

// policyOf finds a policy in a prefix that was made with Calico's %k and %p or
// %n, one behind the other: "np:app/foo". The kernel cuts it at 29 characters
// from iptables, so that a name may be short.
func (k *Kernel) policyOf(prefix string) (p flow.PolicyRef, ok bool) {
	m := k.policy.FindStringSubmatch(prefix)
	if m == nil {
		return p, false
	}
	p.Kind, p.Name = calico.Kind(m[1]), strings.Clone(m[2])
	if namespace, name, namespaced := strings.Cut(p.Name, "/"); namespaced {
		p.Namespace, p.Name = namespace, name
	}
	return p, p.Name != ""
}
