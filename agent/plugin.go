package agent

import (
	"github.com/flowaudit/flowaudit/agent/calico"
	"github.com/flowaudit/flowaudit/agent/felix"
	"github.com/flowaudit/flowaudit/agent/follow"
	"github.com/flowaudit/flowaudit/agent/hubble"
	"github.com/flowaudit/flowaudit/agent/kmsg"
	"github.com/flowaudit/flowaudit/agent/policylog"
	"github.com/flowaudit/flowaudit/flow"
)

// pluginLog is the log of one network plugin.
type pluginLog struct {
	path      string // where it is, or a pattern
	parser    func() policylog.Parser
	hint      string // how it is made to be written
	limit     string // what it does not tell
	elsewhere bool   // conntrack's confirmation says nothing of this plugin's policies
}

// pluginLogs are the logs that can be read, by the source's name.
func pluginLogs() map[string]pluginLog {
	return map[string]pluginLog{
		"weave": {
			path: "/var/log/containers/*_weave-npc-*.log", parser: func() policylog.Parser { return policylog.Weave{} },
			hint:  "weave-npc logs by itself; mount /var/log/containers and /var/log/pods into the agent's container",
			limit: "weave: refusals of TCP and UDP over IPv4 only, without the policy",
		},
		"antrea": {
			path: "/var/log/antrea/networkpolicy/np.log", parser: func() policylog.Parser { return policylog.Antrea{} },
			hint:      "set enableLogging: true on Antrea's rules, and the annotation networkpolicy.antrea.io/enable-logging=true on namespaces",
			limit:     "antrea: only rules with enableLogging and namespaces with its annotation; no ICMP types and SCTP ports; the default drop names no policy",
			elsewhere: true,
		},
		"ovn": {
			path: "/var/log/ovn/acl-audit-log.log", parser: func() policylog.Parser { return policylog.OVN{} },
			hint:      `set the annotation k8s.ovn.org/acl-logging={"deny":"info","allow":"info"} on namespaces`,
			limit:     "ovn: only namespaces with the annotation k8s.ovn.org/acl-logging, and by default 20 records a second",
			elsewhere: true,
		},
		"gke": {
			path: "/var/log/network/policy_action.log", parser: func() policylog.Parser { return policylog.GKE{} },
			hint:      "make the NetworkLogging object named default log denied and allowed connections",
			limit:     "gke: up to 500 records a second; a denial names no policy",
			elsewhere: true,
		},
		"aws": {
			path: "/var/log/aws-routed-eni/network-policy-agent.log", parser: func() policylog.Parser { return policylog.NewAWS() },
			hint:      "set enablePolicyEventLogs: true of the VPC CNI's node agent, and log level info or debug",
			limit:     "aws: no policies; an egress record has the Service's address, and some versions log refusals that were none",
			elsewhere: true,
		},
		sourceKubeNetPol: {
			path: "/var/log/containers/*_kube-network-policies-*.log", parser: func() policylog.Parser { return &policylog.KubeNetworkPolicies{} },
			hint:  "start kube-network-policies with -v=2 --logging-format=json; mount /var/log/containers and /var/log/pods into the agent's container",
			limit: "kube-network-policies: no policies, no ICMP types",
		},
	}
}

// pluginOpeners open the sources of network plugins.
func (a *agent) pluginOpeners() []opener {
	var all []opener
	for _, c := range a.plugins {
		all = append(all, opener{c.String(), a.pluginOpener(c)})
	}
	return all
}

func (a *agent) pluginOpener(c chosen) func() (source, error) {
	switch c.Name {
	case sourceHubble:
		memory := &hubble.Memory{}
		return func() (source, error) { return a.openHubble(c.Address, memory) }
	case sourceFelix:
		return func() (source, error) {
			return opened(felix.Open(felix.Options{
				Node: a.reporter(), Path: socketOf(c.Choice), Allowed: !a.Conntrack || c.why == whyFelixEBPF, StateDir: a.StateDir,
				Report: a.inbox.report, Lost: a.inbox.lost, Logger: a.Log,
			}))
		}
	case sourceKernelLog:
		return func() (source, error) {
			parser, err := kernelLog(c.Address)
			if err != nil {
				return nil, err
			}
			return opened(kmsg.Open(kmsg.Options{
				Name: c.String(), Node: a.reporter(), Parser: parser, StateDir: a.StateDir, Deliver: a.inbox.deliver, Lost: a.inbox.lost, Logger: a.Log,
			}))
		}
	}
	log, memory := pluginLogs()[c.Name], &follow.Memory{}
	if c.Address != "" {
		log.path = c.Address
	}
	return func() (source, error) {
		return opened(follow.Open(follow.Options{
			Name: c.String(), Node: a.reporter(), Path: log.path, Parser: &policylog.Container{Parser: log.parser()}, Hint: log.hint,
			StateDir: a.StateDir, Memory: memory, Deliver: a.inbox.deliver, Lost: a.inbox.lost, Logger: a.Log,
		}))
	}
}

// opened turns a source that could not be opened into none: an interface that
// holds a nil pointer is not nil.
func opened[S source](s S, err error) (source, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (a *agent) openHubble(address string, memory *hubble.Memory) (source, error) {
	o, err := hubbleAddress(address)
	if err != nil {
		return nil, err
	}
	return opened(hubble.Open(hubble.Options{
		Node: a.reporter(), Address: o.Address, Conn: o.Conn, Memory: memory, Deliver: a.inbox.deliver, Lost: a.inbox.lost, Logger: a.Log,
	}))
}

// pluginLimits say what the chosen sources cannot tell.
func (a *agent) pluginLimits() (limits []string) {
	logs := pluginLogs()
	for _, c := range a.plugins {
		switch {
		case c.Name == sourceFelix && a.Conntrack && c.why != whyFelixEBPF:
			limits = append(limits, "felix: refusals only, by names without addresses, up to 5 minutes late; conntrack tells what was allowed")
		case c.Name == sourceFelix:
			limits = append(limits, "felix: names without addresses, up to 5 minutes late")
		case c.Name == sourceKernelLog:
			limits = append(limits, "kernel-log: what a LOG rule's record stands for is a convention")
		case logs[c.Name].limit != "":
			limits = append(limits, logs[c.Name].limit)
		}
	}
	return limits
}

// clusterPolicies lists the cluster's NetworkPolicies; nil if it is not known.
func (a *agent) clusterPolicies() func() []flow.PolicyRef {
	if a.index == nil {
		return nil
	}
	return func() (refs []flow.PolicyRef) {
		for _, p := range a.index.Policies() {
			refs = append(refs, flow.PolicyRef{Kind: calico.KindKubernetes, Namespace: p.Namespace, Name: p.Name})
		}
		return refs
	}
}
