// Package ledger holds what was done against what flowaudit says was done.
package ledger

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/flowaudit/flowaudit/flow"
)

// Deed is what was done between two ends, and what flowaudit must say of it.
type Deed struct {
	Verdict             flow.Verdict
	Protocol            flow.Protocol
	Source, Destination End
	Port                uint16
	Service             string // that was asked, as namespace/name; "" is none
	Connections         uint64
	Bytes               uint64 // each way at least
}

// End is an end as an answer must name it.
type End struct {
	Addr     netip.Addr
	Pod      string // namespace/name
	Workload string // kind/name
	Node     string
}

func (d Deed) String() string {
	return fmt.Sprintf("%s %s %s → %s port %d service %q", d.Verdict, d.Protocol, d.Source, d.Destination, d.Port, d.Service)
}

func (e End) String() string {
	return fmt.Sprintf("%s(%s, %s, %s)", e.Addr, e.Pod, e.Workload, e.Node)
}

// of makes an end from an answer.
func of(addr netip.Addr, e *flow.Endpoint) End {
	if e == nil {
		return End{Addr: addr}
	}
	end := End{Addr: addr, Node: e.Node}
	if e.Kind != flow.EndpointPod {
		end.Pod = e.Kind.String()
	} else {
		end.Pod = e.Namespace + "/" + e.Pod
	}
	if e.Workload != (flow.Workload{}) {
		end.Workload = e.Workload.Kind + "/" + e.Workload.Name
	}
	return end
}

// key is what tells deeds apart.
func (d Deed) key() Deed {
	d.Connections, d.Bytes = 0, 0
	return d
}

// Compare says where the flows differ from the deeds: connections that are
// missing or too many, names that are wrong, and what nobody did.
func Compare(deeds []Deed, flows []flow.Flow) error {
	answers := make(map[Deed]Deed)
	for i := range flows {
		d := deed(&flows[i])
		sum := answers[d.key()]
		connections, bytes := sum.Connections+d.Connections, sum.Bytes+d.Bytes
		sum = d
		sum.Connections, sum.Bytes = connections, bytes
		answers[d.key()] = sum
	}
	var errs []error
	for _, d := range join(deeds) {
		got := answers[d.key()]
		delete(answers, d.key())
		switch {
		case got.Connections != d.Connections:
			errs = append(errs, fmt.Errorf("%s: %d connections made, %d in the answer", d, d.Connections, got.Connections))
		case got.Bytes < d.Bytes:
			errs = append(errs, fmt.Errorf("%s: %d bytes sent each way, %d in the answer", d, d.Bytes, got.Bytes))
		}
	}
	for _, d := range answers {
		errs = append(errs, fmt.Errorf("%s: %d connections in the answer, and never made", d, d.Connections))
	}
	slices.SortFunc(errs, func(a, b error) int { return compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// join sums up deeds that an answer cannot tell apart.
func join(deeds []Deed) []Deed {
	var all []Deed
	for _, d := range deeds {
		if i := slices.IndexFunc(all, func(x Deed) bool { return x.key() == d.key() }); i >= 0 {
			all[i].Connections += d.Connections
			all[i].Bytes += d.Bytes
			continue
		}
		all = append(all, d)
	}
	return all
}

// deed is what a flow says was done.
func deed(f *flow.Flow) Deed {
	d := Deed{
		Verdict: f.Verdict, Protocol: f.Protocol, Source: of(f.Src, f.Source), Destination: of(f.Dst, f.Destination), Port: f.Port,
		Connections: f.Connections, Bytes: min(f.Sent.Bytes, f.Received.Bytes),
	}
	if f.Service != nil {
		d.Service = f.Service.Namespace + "/" + f.Service.Name
	}
	return d
}
