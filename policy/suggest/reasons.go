package suggest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy/history"
	"github.com/flowaudit/flowaudit/policy/replay"
)

// addressReasons says why a rule names addresses, and whose they are.
func (a *assembly) addressReasons(parties map[netip.Prefix]party, edges []*history.Edge) []string {
	reasons := make(map[string]bool)
	var nodes []string
	for prefix, p := range parties {
		switch p.kind {
		case nodeAddr:
			nodes = append(nodes, strings.TrimSpace(p.node+" "+prefix.Addr().String()))
		case apiAddr:
			reasons["the API server"] = true
		case hostAddr:
			if history.Metadata(prefix.Addr()) {
				reasons["the cloud's metadata service"] = true
			} else {
				reasons["answered by the node itself"] = true
			}
		case dnsCacheAddr:
			reasons["the node-local DNS cache, by its address: its packets are not tracked, so nobody is seen to use it"] = true
		case outsideAddr, noAddress:
			if !prefix.IsSingleIP() {
				reasons["the store joined the addresses of "+prefix.String()+": there were too many"] = true
			}
		}
	}
	if len(nodes) > 0 {
		slices.Sort(nodes)
		nodes = slices.Compact(nodes)
		text := "nodes"
		if len(nodes) == 1 {
			text = "node"
		}
		reasons[text+" "+few(nodes)+": pods on the host's network cannot be selected, only their nodes' addresses"] = true
	}
	if a.egress && len(nodes) > 0 && slices.ContainsFunc(edges, func(e *history.Edge) bool { return e.Protocol == flow.TCP && e.Port == 6443 }) {
		reasons["port 6443 is the API server's"] = true
	}
	if !a.egress {
		a.translated(edges, reasons)
	}
	return slices.Sorted(maps.Keys(reasons))
}

// translated says who stands behind sources that were changed on the way.
func (a *assembly) translated(edges []*history.Edge, reasons map[string]bool) {
	var sources []string
	for _, e := range edges {
		if e.Seen.IsValid() {
			sources = append(sources, replay.EndText(&e.Source))
		}
	}
	if len(sources) > 0 {
		slices.Sort(sources)
		reasons["the source is translated on the way, and the destination's node sees this address; behind it: "+few(slices.Compact(sources))] = true
	}
}

// few lists the first of many.
func few(list []string) string {
	const shown = 5
	if len(list) <= shown {
		return strings.Join(list, ", ")
	}
	return strings.Join(list[:shown], ", ") + " and " + strconv.Itoa(len(list)-shown) + " more"
}

// joinEvidence sums up what differs in labels, verdicts or assessments only.
func joinEvidence(list []Evidence) []Evidence {
	joined := make(map[string]*Evidence)
	for i := range list {
		e := &list[i]
		key := fmt.Sprintf("%s>%s %s %05d", e.Source, e.Destination, e.Protocol, e.Port)
		known := joined[key]
		if known == nil {
			joined[key] = e
			continue
		}
		known.Connections += e.Connections
		known.Hours = max(known.Hours, e.Hours)
		if e.First.Before(known.First) {
			known.First = e.First
		}
		if e.Last.After(known.Last) {
			known.Last = e.Last
		}
	}
	var out []Evidence
	for _, key := range slices.Sorted(maps.Keys(joined)) {
		out = append(out, *joined[key])
	}
	return out
}
