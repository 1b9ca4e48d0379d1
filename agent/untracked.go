package agent

import "github.com/flowaudit/flowaudit/flow"

// limitUntracked is said once such packets were seen.
const limitUntracked = "some pods' packets bypass connection tracking (NOTRACK), as for NodeLocal DNS: what became of them is unknown, and at most 100 of them a second are seen"

// untracked takes in a packet that bypasses connection tracking. Only those of
// pods are told, and only from the side that asks: the lower port serves.
func (t *table) untracked(o *flow.Observation) {
	if o.Fragment || o.Protocol.HasPorts() && o.Original.SrcPort < o.Original.DstPort {
		return
	}
	if !t.window.pod(o.Original.Src, o.Time) && !t.window.pod(o.Original.Dst, o.Time) {
		return
	}
	t.stats.untracked++
	t.countUntracked(o)
}

// bypasses takes in a packet of a connection that IPVS serves without
// connection tracking: conntrack confirms none of them. What its servers send
// back is no attempt.
func (t *table) bypasses(o *flow.Observation) bool {
	if t.IPVS == nil {
		return false
	}
	services := t.IPVS()
	if services == nil {
		return false
	}
	if services.To(o.Protocol, o.Original, o.Mark) {
		t.countUntracked(o)
		return true
	}
	return services.From(o.Protocol, o.Original)
}

func (t *table) countUntracked(o *flow.Observation) {
	k := windowKey{src: o.Original.Src, dst: o.Original.Dst, port: flowPort(o, o.Original.DstPort), protocol: o.Protocol}
	if t.PerConn {
		k.srcPort = o.Original.SrcPort
	}
	f, fresh := t.window.flow(&k, o.Time, o.Time)
	if fresh {
		f.Reason = flow.ReasonUntracked
	}
	f.Sources |= flow.SourceTap
	f.TCPFlags |= o.TCPFlags
	if t.attempts.first(&k, o.Original.SrcPort, o.Sequence, o.Time) {
		f.Connections++
	}
	if f.SourcePort == 0 {
		f.SourcePort = o.Original.SrcPort
	}
}
