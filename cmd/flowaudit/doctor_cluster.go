package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// askCluster adds what the collector knows. Where it must not answer, that it
// does not is a note.
func (o *doctor) askCluster(ctx context.Context, d *diagnosis, must bool) error {
	err := o.ask(ctx, false, func(ctx context.Context, q flowauditv1.QueryClient) error {
		s, err := q.Status(ctx, &flowauditv1.StatusRequest{})
		if err != nil {
			return err
		}
		d.Cluster = checkStatus(s, o.env.now())
		rows, err := o.enforcement(ctx, q, d)
		if err != nil {
			return err
		}
		policies, err := currentPolicies(ctx, q, o.env.now())
		if err != nil {
			return err
		}
		seen := weigh(rows)
		d.Cluster = append(d.Cluster, excused(rows)...)
		d.Policies = withUnseen(seen, policies, nodesOf(s))
		return nil
	})
	if err != nil && !must && ctx.Err() == nil && !errors.As(err, new(usageError)) {
		d.Cluster = []check{{State: stateNote, About: "collector", Text: "not asked: " + err.Error()}}
		return nil
	}
	return err
}

// nodesOf are the nodes with an agent.
func nodesOf(s *flowauditv1.StatusResponse) (nodes []string) {
	for _, a := range s.GetAgents() {
		if a.GetScope() != flowauditv1.Scope_SCOPE_POD {
			nodes = append(nodes, a.GetNode())
		}
	}
	slices.Sort(nodes)
	return slices.Compact(nodes)
}

// checkStatus judges what the collector says of itself and its agents.
func checkStatus(s *flowauditv1.StatusResponse, now time.Time) (out []check) {
	for _, p := range s.GetProblems() {
		out = append(out, check{State: stateProblem, About: "collector", Text: p})
	}
	c := s.GetCluster()
	if c.GetAway() {
		out = append(out, check{State: stateProblem, About: "API server", Text: "is away: names and policies are those that were known before"})
	}
	if kinds := c.GetPolicyKinds(); len(kinds) > 0 {
		out = append(out, check{State: stateNote, About: "other policies", Text: "are in use; what concerns pods that they select is not held against NetworkPolicies: " + strings.Join(kinds, ", ")})
	}
	for _, d := range c.GetPolicyDoubts() {
		out = append(out, check{State: stateNote, About: "other policies", Text: "taken to select every pod that it could: " + d})
	}
	nodes := nodesOf(s)
	switch missing := int64(c.GetNodes()) - int64(len(nodes)); {
	case len(s.GetAgents()) == 0:
		out = append(out, check{State: stateProblem, About: "agents", Text: "none has reported: nothing is known of traffic"})
	case missing > 0 && len(nodes) > 0:
		out = append(out, check{State: stateProblem, About: "agents", Text: fmt.Sprintf("%d of %d nodes have none", missing, c.GetNodes())})
	default:
		out = append(out, check{State: stateOK, About: "agents", Text: fmt.Sprintf("%d", len(s.GetAgents()))})
	}
	for _, a := range s.GetAgents() {
		out = append(out, checkAgent(a, now)...)
	}
	return out
}

func checkAgent(a *flowauditv1.Agent, now time.Time) (out []check) {
	about := "agent " + a.GetNode()
	if silent := now.Sub(time.UnixMilli(a.GetLastSeen())); silent > silentAfter {
		out = append(out, check{State: stateProblem, About: about, Text: "has been silent for " + short(silent)})
	}
	if n := len(a.GetGaps()); n > 0 {
		last := flowauditv1.ToGap(a.GetGaps()[n-1])
		out = append(out, check{State: stateProblem, About: about, Text: fmt.Sprintf("%d %s in the last hour, the last: %s", n, plural(uint64(n), "gap"), gapText(last, now))})
	}
	for _, l := range a.GetLimits() {
		out = append(out, check{State: stateNote, About: about, Text: l})
	}
	if n := a.GetContradicted(); n > 0 {
		out = append(out, check{State: stateNote, About: about, Text: fmt.Sprintf("%d %s of the plugin's log are contradicted by conntrack", n, plural(n, "record"))})
	}
	return out
}

// enforcement asks what was seen of policies.
func (o *doctor) enforcement(ctx context.Context, q flowauditv1.QueryClient, d *diagnosis) (rows []seenRow, err error) {
	stream, err := q.Run(ctx, &flowauditv1.RunRequest{Name: "enforcement", Arguments: map[string]string{"since": o.since}}, compressed())
	if err != nil {
		return nil, err
	}
	var columns []string
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return nil, err
		}
		if len(part.GetColumns()) > 0 {
			columns = part.GetColumns()
		}
		for _, r := range part.GetRows() {
			object := make(map[string]any, len(columns))
			for i, v := range r.GetValues() {
				if i < len(columns) {
					object[columns[i]] = v.AsInterface()
				}
			}
			row, err := readSeen(object)
			if err != nil {
				return nil, err
			}
			rows = append(rows, row)
		}
		if c := part.GetCoverage(); c != nil {
			coverage := flowauditv1.ToCoverage(c)
			d.coverage = &coverage
		}
	}
}

// readSeen reads a row of the question's answer.
func readSeen(object map[string]any) (row seenRow, err error) {
	text, err := json.Marshal(object)
	if err == nil {
		err = json.Unmarshal(text, &row)
	}
	if err == nil && row.Refs != "" {
		err = json.Unmarshal([]byte(row.Refs), &row.policies)
	}
	if err != nil {
		return row, fmt.Errorf("read answer: %w", err)
	}
	return row, nil
}

// policySides are the sides that a policy isolates pods on.
type policySides struct {
	policy string // namespace/name
	sides  []string
}

// currentPolicies asks which NetworkPolicies there are.
func currentPolicies(ctx context.Context, q flowauditv1.QueryClient, now time.Time) (out []policySides, err error) {
	// A moment ago, because the collector's clock may be behind.
	all, err := changes(ctx, q, now.Add(-time.Minute), now, "")
	if err != nil {
		return nil, err
	}
	known := make(map[string]policySides)
	for _, c := range all {
		if c.Kind != flow.ChangePolicy {
			continue
		}
		name := c.Namespace + "/" + c.Name
		delete(known, name)
		var p networkingv1.NetworkPolicy
		if c.Deleted || json.Unmarshal(c.Object, &p) != nil {
			continue
		}
		known[name] = policySides{name, sidesOf(&p.Spec)}
	}
	for _, p := range known {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b policySides) int { return strings.Compare(a.policy, b.policy) })
	return out, nil
}

// sidesOf follows the API's default where no types are given.
func sidesOf(s *networkingv1.NetworkPolicySpec) (sides []string) {
	if len(s.PolicyTypes) == 0 {
		if sides = []string{sideIngress}; len(s.Egress) > 0 {
			sides = append([]string{sideEgress}, sides...)
		}
		return sides
	}
	for _, t := range s.PolicyTypes {
		sides = append(sides, strings.ToLower(string(t)))
	}
	slices.Sort(sides)
	return slices.Compact(sides)
}
