package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// What traffic showed of a policy on a node.
const (
	seenUnenforced  = "unenforced"  // what the policy denies passed
	seenUnexplained = "unexplained" // what policies allow was refused
	seenEnforced    = "enforced"    // what the policy denies was refused
	seenInferred    = "inferred"    // what the policy denies got no answer
	seenNothing     = "nothing-seen"
)

// Sides of policies.
const (
	sideEgress  = "egress"
	sideIngress = "ingress"
)

// seenRow is a row of the question "enforcement".
type seenRow struct {
	Refs            string    `json:"policy_refs"`
	Assessment      string    `json:"assessment"`
	Verdict         string    `json:"verdict"`
	Caveat          string    `json:"caveat"`
	Reason          string    `json:"reason"`
	Node            string    `json:"node"` // that reports
	SourceNode      string    `json:"source_node"`
	DestinationNode string    `json:"destination_node"`
	Connections     float64   `json:"connections"`
	LastSeen        time.Time `json:"last_seen"`
	Source          string    `json:"source"`
	Destination     string    `json:"destination"`
	Port            float64   `json:"port"`
	Protocol        string    `json:"protocol"`

	policies []flow.PolicyRef
}

// evidence is what was seen of one side of a policy on one node; of nodes where
// nothing was seen there is one for all.
type evidence struct {
	Policy      string    `json:"policy"` // namespace/name; empty where no policy has a say
	Side        string    `json:"side,omitempty"`
	Node        string    `json:"node,omitempty"`
	Nodes       int       `json:"nodes,omitempty"` // where nothing was seen
	State       string    `json:"state"`
	Gone        bool      `json:"gone,omitempty"` // the policy is deleted
	Refused     uint64    `json:"refused"`        // connections, as policy says
	Inferred    uint64    `json:"inferred"`
	Passed      uint64    `json:"passed"`
	Unexplained uint64    `json:"unexplained"`
	LastSeen    time.Time `json:"last_seen,omitzero"` // of what the state rests on
	Example     string    `json:"example,omitempty"`  // the last such connection

	counted map[string]map[string]uint64 // by state and reporting node
	latest  map[string]sighting          // by state
}

type sighting struct {
	at   time.Time
	text string
}

type evidenceKey struct{ policy, side, node string }

func (e *evidence) problem() bool {
	return !e.Gone && (e.State == seenUnenforced || e.State == seenUnexplained)
}

// weigh finds what rows say of each policy, side and node.
func weigh(rows []seenRow) []*evidence {
	all := make(map[evidenceKey]*evidence)
	for i := range rows {
		r := &rows[i]
		state := r.state()
		if state == "" {
			continue
		}
		for _, k := range r.where(state) {
			e := all[k]
			if e == nil {
				e = &evidence{Policy: k.policy, Side: k.side, Node: k.node, counted: make(map[string]map[string]uint64), latest: make(map[string]sighting)}
				all[k] = e
			}
			e.add(state, r)
		}
	}
	out := slices.Collect(maps.Values(all))
	for _, e := range out {
		e.conclude()
	}
	return out
}

// state is what a row shows; empty for nothing.
func (r *seenRow) state() string {
	switch {
	case r.Assessment == flow.AssessmentUnenforced.String():
		return seenUnenforced
	case r.Assessment == flow.AssessmentUnexplained.String():
		return seenUnexplained
	case r.Assessment != flow.AssessmentEnforced.String():
		return ""
	case r.Verdict == flow.VerdictDenied.String():
		return seenEnforced
	}
	return seenInferred
}

// otherCause reports whether something else than a policy is known to have refused.
func (r *seenRow) otherCause() bool {
	reason, err := flow.ParseReason(r.Reason)
	return err == nil && reason.OtherCause()
}

// where says of whom a row tells something. A refusal tells of the node that
// refused. What passed was let through, and what nobody answers may have been
// refused, at each side that denies it.
func (r *seenRow) where(state string) (keys []evidenceKey) {
	refused := state == seenEnforced || state == seenUnexplained
	for _, p := range r.policies {
		if r.otherCause() || p.Kind == flow.KindNetfilter {
			continue // no policy is to blame
		}
		node := r.DestinationNode
		if p.Side == sideEgress {
			node = r.SourceNode
		}
		if node == "" || p.Side == "" {
			node = r.Node
		}
		if refused && node != r.Node {
			continue
		}
		if k := (evidenceKey{p.Namespace + "/" + p.Name, p.Side, node}); !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 && state == seenUnexplained {
		keys = append(keys, evidenceKey{node: r.Node})
	}
	return keys
}

func (e *evidence) add(state string, r *seenRow) {
	if e.counted[state] == nil {
		e.counted[state] = make(map[string]uint64)
	}
	e.counted[state][r.Node] += uint64(r.Connections)
	if s, ok := e.latest[state]; !ok || r.LastSeen.After(s.at) {
		text := fmt.Sprintf("%s -> %s, %s port %.0f", r.Source, r.Destination, r.Protocol, r.Port)
		if r.otherCause() {
			text += " (" + r.Reason + ")"
		}
		e.latest[state] = sighting{r.LastSeen, text}
	}
}

// conclude counts: of two nodes that report the same connections, as the one
// that saw more.
func (e *evidence) conclude() {
	most := func(state string) (n uint64) {
		for _, c := range e.counted[state] {
			n = max(n, c)
		}
		return n
	}
	e.Refused, e.Inferred, e.Passed, e.Unexplained = most(seenEnforced), most(seenInferred), most(seenUnenforced), most(seenUnexplained)
	for _, state := range []string{seenUnenforced, seenUnexplained, seenEnforced, seenInferred} {
		if s, ok := e.latest[state]; ok {
			e.State, e.LastSeen, e.Example = state, s.at, s.text
			return
		}
	}
}

// withUnseen adds, for each side of the policies, on how many nodes nothing was
// seen, marks policies that are gone, and sorts.
func withUnseen(seen []*evidence, policies []policySides, nodes []string) []*evidence {
	known := make(map[string]bool)
	has := make(map[evidenceKey]bool)
	for _, e := range seen {
		has[evidenceKey{e.Policy, e.Side, e.Node}] = true
	}
	for _, p := range policies {
		known[p.policy] = true
		for _, side := range p.sides {
			unseen := 0
			for _, n := range nodes {
				if !has[evidenceKey{p.policy, side, n}] {
					unseen++
				}
			}
			if unseen > 0 || len(nodes) == 0 {
				seen = append(seen, &evidence{Policy: p.policy, Side: side, State: seenNothing, Nodes: unseen})
			}
		}
	}
	for _, e := range seen {
		e.Gone = e.Policy != "" && !known[e.Policy]
	}
	slices.SortFunc(seen, func(a, b *evidence) int {
		return cmp.Or(cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Side, b.Side), cmp.Compare(a.Nodes, b.Nodes), cmp.Compare(a.Node, b.Node))
	})
	return seen
}

// excused says how much traffic is not held against any policy, and why.
func excused(rows []seenRow) (out []check) {
	counts := make(map[string]map[string]uint64) // by caveat and reporting node
	for i := range rows {
		r := &rows[i]
		if r.Caveat == "" {
			continue
		}
		if counts[r.Caveat] == nil {
			counts[r.Caveat] = make(map[string]uint64)
		}
		counts[r.Caveat][r.Node] += uint64(r.Connections)
	}
	for _, caveat := range slices.Sorted(maps.Keys(counts)) {
		var n uint64
		for _, c := range counts[caveat] {
			n += c
		}
		out = append(out, check{
			State: stateNote, About: "not judged", Text: fmt.Sprintf("%d %s, by the nodes' counts: %s (flowaudit observe -o json has the caveat of each)", n, plural(n, "connection"), caveat),
		})
	}
	return out
}

func writeEvidence(w io.Writer, all []*evidence, location *time.Location) error {
	if len(all) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "POLICY\tSIDE\tNODE\tSTATE\tREFUSED\tPASSED\tUNEXPLAINED\tLAST SEEN\tEXAMPLE")
	for _, e := range all {
		policy, node, last := orDash(e.Policy), e.Node, "-"
		if e.Gone {
			policy += " (deleted)"
		}
		if e.State == seenNothing {
			node = fmt.Sprintf("%d %s", e.Nodes, plural(uint64(e.Nodes), "node"))
		}
		if !e.LastSeen.IsZero() {
			last = e.LastSeen.In(location).Format(time.DateTime)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\n", policy, orDash(e.Side), orDash(node), strings.ReplaceAll(e.State, "-", " "),
			e.Refused, e.Passed, e.Unexplained, last, orDash(e.Example))
	}
	return t.Flush()
}
