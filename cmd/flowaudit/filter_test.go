package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

func cidrs(all ...string) (out []netip.Prefix) {
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// asked gives the question that a command line puts to the collector.
func asked(t *testing.T, args ...string) (*flowauditv1.ObserveRequest, flow.Filter) {
	t.Helper()
	c := &collector{}
	if r := flowaudit(t, c, nil, append([]string{"observe"}, args...)...); r.code != exitOK {
		t.Fatalf("exit code %d: %s", r.code, r.stderr)
	}
	filter, err := flowauditv1.ToFilter(c.observed.GetFilter())
	if err != nil {
		t.Fatal(err)
	}
	return c.observed, filter
}

// filterCase is filter flags and what they ask for; | is a space in a value.
type filterCase struct {
	args       string
	match, not flow.Selector
}

func filterCases() []filterCase {
	either := func(e flow.Ends) flow.Selector { return flow.Selector{Either: e} }
	from := func(e flow.Ends) flow.Selector { return flow.Selector{From: e} }
	to := func(e flow.Ends) flow.Selector { return flow.Selector{To: e} }
	term := func(key string, op flow.LabelOp, values ...string) flow.LabelTerm {
		return flow.LabelTerm{Key: key, Op: op, Values: values}
	}
	shop := flow.Ends{Namespaces: []string{"shop"}}
	return []filterCase{
		{args: ""},
		{args: "-A"},
		{args: "-n shop", match: either(shop)},
		{args: "--namespace shop", match: either(shop)},
		{args: "-n shop,bank -n ops", match: either(flow.Ends{Namespaces: []string{"shop", "bank", "ops"}})},
		{args: "--from-namespace shop", match: from(shop)},
		{args: "--to-namespace shop", match: to(shop)},
		{args: "--pod web", match: either(flow.Ends{Pods: []flow.PodPrefix{{Name: "web"}}})},
		{args: "--pod shop/web", match: either(flow.Ends{Pods: []flow.PodPrefix{{Namespace: "shop", Name: "web"}}})},
		{args: "--from-pod shop/", match: from(flow.Ends{Pods: []flow.PodPrefix{{Namespace: "shop"}}})},
		{args: "--to-pod db-0", match: to(flow.Ends{Pods: []flow.PodPrefix{{Name: "db-0"}}})},
		{args: "--workload web", match: either(flow.Ends{Workloads: []flow.WorkloadName{{Name: "web"}}})},
		{args: "--from-workload shop/web", match: from(flow.Ends{Workloads: []flow.WorkloadName{{Namespace: "shop", Name: "web"}}})},
		{args: "--to-workload shop/StatefulSet/db", match: to(flow.Ends{Workloads: []flow.WorkloadName{{Namespace: "shop", Kind: "StatefulSet", Name: "db"}}})},
		{args: "--ip 10.0.0.7", match: either(flow.Ends{Prefixes: cidrs("10.0.0.7/32")})},
		{args: "--ip ::ffff:10.0.0.7", match: either(flow.Ends{Prefixes: cidrs("10.0.0.7/32")})},
		{args: "--ip ::ffff:10.0.0.0/104", match: either(flow.Ends{Prefixes: cidrs("10.0.0.0/8")})},
		{args: "--from-ip 10.1.2.3/8,fd00::1", match: from(flow.Ends{Prefixes: cidrs("10.0.0.0/8", "fd00::1/128")})},
		{args: "--to-ip fd00::5/64", match: to(flow.Ends{Prefixes: cidrs("fd00::/64")})},
		{args: "-l app=web", match: either(flow.Ends{Labels: []flow.LabelTerm{term("app", flow.LabelIn, "web")}})},
		{args: "--from-label app=web,tier!=db,new,!old", match: from(flow.Ends{Labels: []flow.LabelTerm{
			term("app", flow.LabelIn, "web"), term("new", flow.LabelExists), term("old", flow.LabelNotExists), term("tier", flow.LabelNotIn, "db"),
		}})},
		{args: "--to-label tier|in|(web,db)", match: to(flow.Ends{Labels: []flow.LabelTerm{term("tier", flow.LabelIn, "db", "web")}})},
		{args: "--port 80,443", match: flow.Selector{Ports: []uint16{80, 443}}},
		{args: "--protocol tcp,UDP,sctp,icmp,icmpv6,47", match: flow.Selector{Protocols: []flow.Protocol{flow.TCP, flow.UDP, flow.SCTP, flow.ICMP, flow.ICMPv6, 47}}},
		{args: "--verdict denied", match: flow.Selector{Verdicts: []flow.Verdict{flow.VerdictDenied}}},
		{args: "--verdict DROPPED,Forwarded,allowed,unanswered,unknown", match: flow.Selector{Verdicts: []flow.Verdict{
			flow.VerdictDenied, flow.VerdictAllowed, flow.VerdictAllowed, flow.VerdictUnanswered, flow.VerdictUnknown,
		}}},
		{args: "--assessment unenforced", match: flow.Selector{Assessments: []flow.Assessment{flow.AssessmentUnenforced}}},
		{args: "--reason no-route,Logged", match: flow.Selector{Reasons: []flow.Reason{flow.ReasonNoRoute, flow.ReasonLogged}}},
		{args: "--caveat recent-change", match: flow.Selector{Caveats: []flow.Caveat{flow.CaveatRecent}}},
		{args: "--refused-at Between,egress", match: flow.Selector{RefusedAt: []flow.Place{flow.PlaceBetween, flow.PlaceEgress}}},
		{args: "--traffic-direction Ingress,egress", match: flow.Selector{Directions: []flow.Direction{flow.DirectionIngress, flow.DirectionEgress}}},
		{args: "--node-name node-1", match: flow.Selector{Nodes: []string{"node-1"}}},
		{args: "--cluster prod", match: flow.Selector{Clusters: []string{"prod"}}},
		{args: "--not -n shop", not: either(shop)},
		{args: "--not --port 53 --port 80", match: flow.Selector{Ports: []uint16{80}}, not: flow.Selector{Ports: []uint16{53}}},
		{args: "--not --utc --port 53", not: flow.Selector{Ports: []uint16{53}}},
		{args: "--not=false --port 53", match: flow.Selector{Ports: []uint16{53}}},
		{args: "-A --not -n shop", not: either(shop)},
		{args: "--to-pod shop/db --not --from-pod shop/api -f", match: to(flow.Ends{Pods: []flow.PodPrefix{{Namespace: "shop", Name: "db"}}}), not: from(flow.Ends{Pods: []flow.PodPrefix{{Namespace: "shop", Name: "api"}}})},
	}
}

func TestFilterFlags(t *testing.T) {
	for _, test := range filterCases() {
		t.Run("observe "+test.args, func(t *testing.T) {
			args := strings.Fields(test.args)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "|", " ")
			}
			_, got := asked(t, args...)
			if diff := cmp.Diff(flow.Filter{Match: test.match, Not: test.not}, got, cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEveryFilterFlagIsTried(t *testing.T) {
	var tried strings.Builder
	for _, test := range filterCases() {
		tried.WriteString(test.args + " ")
	}
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	(&filterFlags{}).register(fs)
	fs.VisitAll(func(f *pflag.Flag) {
		if !strings.Contains(tried.String(), "--"+f.Name+" ") && !strings.Contains(tried.String(), "-"+f.Shorthand+" ") {
			t.Errorf("--%s is in no row of the table", f.Name)
		}
	})
}

func TestLimitsAndTimes(t *testing.T) {
	for _, test := range []struct {
		args         string
		first, last  uint64
		follow       bool
		since, until string // in here's zone
	}{
		{args: "", last: 20},
		{args: "-f", last: 20, follow: true},
		{args: "--all"},
		{args: "--last 5", last: 5},
		{args: "--first 5", first: 5},
		{args: "--until 5m", last: 20, until: "2026-03-01 12:55:00"},
		{args: "--since 90s", since: "2026-03-01 12:58:30"},
		{args: "--since 2h --last 3", last: 3, since: "2026-03-01 11:00:00"},
		{args: "--since 7d", since: "2026-02-22 13:00:00"},
		{args: "--since 2026-02-01", since: "2026-02-01 00:00:00"},
		{args: "--since 2026-02-01T10:00:00Z", since: "2026-02-01 11:00:00"},
		{args: "--since 2026-02-01T10:00 --until 2026-02-01T11:30:15", since: "2026-02-01 10:00:00", until: "2026-02-01 11:30:15"},
	} {
		t.Run("observe "+test.args, func(t *testing.T) {
			req, filter := asked(t, strings.Fields(test.args)...)
			if req.GetFirst() != test.first || req.GetLast() != test.last || req.GetFollow() != test.follow {
				t.Errorf("first %d, last %d, follow %t", req.GetFirst(), req.GetLast(), req.GetFollow())
			}
			for _, x := range []struct {
				name, want string
				got        time.Time
			}{{"since", test.since, filter.Since}, {"until", test.until, filter.Until}} {
				got := ""
				if !x.got.IsZero() {
					got = x.got.In(here.Location()).Format(time.DateTime)
				}
				if got != x.want {
					t.Errorf("%s %q, want %q", x.name, got, x.want)
				}
			}
		})
	}
}

// TestPrintFilterAsksNothing: it needs no collector.
func TestPrintFilterAsksNothing(t *testing.T) {
	r := flowaudit(t, nil, map[string]string{"FLOWAUDIT_SERVER": "unix:/none"}, "observe", "--print-filter", "-n", "shop", "--not", "--port", "53")
	if r.code != exitOK || !strings.Contains(r.stdout, `"shop"`) || !strings.Contains(r.stdout, "53") {
		t.Errorf("%+v", r)
	}
}
