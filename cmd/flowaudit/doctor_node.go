package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/flowaudit/flowaudit/agent"
)

// checkNode judges what a node shows.
func checkNode(n *agent.Node) []check {
	out := checkPlugins(n)
	for _, f := range n.Sources {
		out = append(out, check{State: stateOK, About: "source " + f.Source, Text: "auto reads it: " + f.Why})
	}
	for _, note := range n.Notes {
		out = append(out, check{State: stateNote, About: "sources", Text: note})
	}
	for _, g := range slices.Sorted(maps.Keys(n.Groups)) {
		out = append(out, check{State: stateOK, About: fmt.Sprintf("NFLOG group %d", g), Text: n.Groups[g] + " reads it"})
	}
	return append(append(out, checkFeatures(n)...), checkSysctls(n)...)
}

func checkPlugins(n *agent.Node) (out []check) {
	for i, c := range n.CNI {
		text := c.File + ": " + orDash(strings.Join(c.Types, ", "))
		if i > 0 {
			text += " (not used: container runtimes take the first file)"
		}
		out = append(out, check{State: stateOK, About: "CNI", Text: text})
	}
	enforced := false
	for _, p := range n.Plugins {
		enforced = enforced || p.Enforcement != agent.EnforcementNone
	}
	for _, p := range n.Plugins {
		c := check{State: stateOK, About: p.Name, Text: enforcementText(p.Enforcement) + ": " + p.Why}
		if p.Enforcement == agent.EnforcementNone && !enforced {
			c.State = stateProblem
			c.Text += ", and nothing else here does: policies are accepted and have no effect; install what enforces them beside it, such as kube-network-policies"
		}
		out = append(out, c)
	}
	if len(n.Plugins) == 0 {
		out = append(out, check{State: stateNote, About: "network plugin", Text: "none that is known shows itself: whether policies are enforced is told by traffic only"})
	}
	return out
}

func enforcementText(e agent.Enforcement) string {
	switch e {
	case agent.EnforcementNone:
		return "enforces no policies"
	case agent.EnforcementNetfilter:
		return "enforces by netfilter"
	case agent.EnforcementElsewhere:
		return "enforces where netfilter does not see it, so that only its own source tells of refusals"
	}
	return "how it enforces is not known"
}

// featureUse is what a part of the kernel is for.
func featureUse() map[string]string {
	return map[string]string{
		agent.FeatureNFTables: "the tap", agent.FeatureNFLOG: "refusals that rules log, and the tap", agent.FeatureConntrack: "connections",
	}
}

func checkFeatures(n *agent.Node) (out []check) {
	uses := featureUse()
	for _, name := range slices.Sorted(maps.Keys(n.Features)) {
		c := check{State: stateOK, About: name, Text: "is there, for " + uses[name]}
		if err := n.Features[name]; err != nil {
			module := name
			if name == agent.FeatureConntrack {
				module = "nf_conntrack_netlink"
			}
			c = check{State: stateProblem, About: name, Text: fmt.Sprintf("needed for %s: %v", uses[name], err), Fix: "modprobe " + module}
		}
		out = append(out, c)
	}
	return out
}

// wanted is a setting of the kernel, and what goes wrong without it.
type wanted struct {
	name, value string
	good        func(string) bool
	state       string // of one that is not good
	text        string
}

const (
	sysctlCount  = "net.netfilter.nf_conntrack_count"
	sysctlMax    = "net.netfilter.nf_conntrack_max"
	sysctlBridge = "net.bridge.bridge-nf-call-iptables"
	sysctlIPVS   = "net.ipv4.vs.conntrack"
	// agentBuffer is the larger of the agent's receive buffers.
	agentBuffer = 32 << 20
)

func isOn(v string) bool { return v != "0" }

func settings() []wanted {
	return []wanted{
		{"net.netfilter.nf_conntrack_acct", "1", isOn, stateProblem, "connections have no packet and byte counts, unless an agent with CAP_NET_ADMIN switches them on"},
		{"net.netfilter.nf_conntrack_events", "1", isOn, stateProblem, "connections are seen by dumps only, short ones not at all, and there is no tap"},
		{"net.netfilter.nf_conntrack_timestamp", "1", isOn, stateNote, "of connections that are older than the agent it is not known since when they are"},
		{
			"net.core.rmem_max", strconv.Itoa(agentBuffer),
			func(v string) bool { n, err := strconv.Atoi(v); return err == nil && n >= agentBuffer },
			stateNote, "an agent with CAP_NET_ADMIN takes larger buffers all the same; one without it loses events in bursts",
		},
	}
}

func checkSysctls(n *agent.Node) (out []check) {
	for _, w := range settings() {
		v, there := n.Sysctls[w.name]
		switch {
		case !there:
			out = append(out, check{State: stateNote, About: w.name, Text: "cannot be read: the kernel's module is not loaded, or this is no Linux node"})
		case w.good(v):
			out = append(out, check{State: stateOK, About: w.name, Text: "is " + v})
		default:
			out = append(out, check{w.state, w.name, fmt.Sprintf("is %s: %s", v, w.text), setCommand(w.name, w.value)})
		}
	}
	return slices.Concat(out, checkFull(n), checkBridges(n), checkIPVS(n))
}

// checkIPVS finds Services whose connections bypass connection tracking.
func checkIPVS(n *agent.Node) []check {
	v, loaded := n.Sysctls[sysctlIPVS]
	switch {
	case !loaded || n.Services == 0:
		return nil
	case isOn(v):
		return []check{{State: stateOK, About: sysctlIPVS, Text: fmt.Sprintf("is %s, and IPVS has %d %s", v, n.Services, plural(uint64(n.Services), "service"))}}
	}
	return []check{{
		stateProblem, sysctlIPVS, fmt.Sprintf("is 0: connections to the %d %s of IPVS bypass connection tracking, and what becomes of them is unknown", n.Services, plural(uint64(n.Services), "service")),
		setCommand(sysctlIPVS, "1"),
	}}
}

func setCommand(name, value string) string { return fmt.Sprintf("sysctl -w %s=%s", name, value) }

// checkFull finds a table of connections that is nearly full: what it has no
// place for is dropped before any rule sees it.
func checkFull(n *agent.Node) []check {
	count, errCount := strconv.Atoi(n.Sysctls[sysctlCount])
	limit, errMax := strconv.Atoi(n.Sysctls[sysctlMax])
	if errCount != nil || errMax != nil || limit <= 0 {
		return nil
	}
	c := check{State: stateOK, About: sysctlMax, Text: fmt.Sprintf("%d of %d connections", count, limit)}
	if count >= limit/10*9 {
		c.State, c.Fix = stateProblem, setCommand(sysctlMax, strconv.Itoa(2*limit))
		c.Text += ": when the table is full, new connections are dropped and no rule sees them"
	}
	return []check{c}
}

// checkBridges finds bridges whose traffic netfilter does not see.
func checkBridges(n *agent.Node) []check {
	v, loaded := n.Sysctls[sysctlBridge]
	bridges := strings.Join(n.Bridges, ", ")
	switch {
	case bridges == "":
		return nil
	case loaded && isOn(v):
		return []check{{State: stateOK, About: sysctlBridge, Text: "is " + v}}
	}
	c := check{State: stateNote, About: sysctlBridge, Fix: setCommand(sysctlBridge, "1")}
	if slices.ContainsFunc(n.Bridges, podBridge) {
		c.State = stateProblem
	}
	is := "is " + v
	if !loaded {
		is, c.Fix = "is missing", "modprobe br_netfilter && "+c.Fix
	}
	c.Text = fmt.Sprintf("%s: between pods on one bridge (%s) netfilter enforces no policy and sees nothing", is, bridges)
	return []check{c}
}

// podBridge reports whether a bridge has the name of one that connects pods.
func podBridge(name string) bool {
	return slices.ContainsFunc([]string{"cni", "cbr", "kube-bridge", "weave"}, func(p string) bool { return strings.HasPrefix(name, p) })
}
