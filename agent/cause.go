package agent

import (
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/flowaudit/flowaudit/agent/route"
	"github.com/flowaudit/flowaudit/agent/tap"
	"github.com/flowaudit/flowaudit/flow"
)

// causes find out what refused an attempt that conntrack never confirmed, where
// that is no policy. Routing is asked; and the tap traces retries, so that the
// rule of netfilter that drops one is known. The zero value finds nothing.
type causes struct {
	// Route asks the routing about a packet; nil if it cannot be asked.
	Route func(route.Packet) flow.Reason
	// Trace begins to trace packets; false if it cannot be done now. nil if nothing traces.
	Trace func([]tap.Traced) bool

	traced map[windowKey]int64 // when tracing began, Unix nanoseconds
	found  map[windowKey]cause
	asked  int // questions since the last look
}

// cause is why packets of a key are refused.
type cause struct {
	reason flow.Reason // ReasonNone where a network plugin's rule, or an unknown one, did
	told   *flow.Told
	at     int64
}

const (
	// causeTime is how long it is taken to be the same for a key.
	causeTime = time.Minute
	// traceAfter is when an attempt looks refused: most connections are
	// confirmed long before.
	traceAfter = 200 * time.Millisecond
	// tracedGrace is how much longer a traced attempt waits: TCP's first retry
	// comes after a second, and is to be told of.
	tracedGrace = 300 * time.Millisecond
	// maxTraces and maxAsked bound what is begun at one look, so that a flood of
	// refusals costs little.
	maxTraces = 4
	maxAsked  = 50
	maxCauses = 4096
)

func newCauses(o causes) causes {
	o.traced, o.found = make(map[windowKey]int64), make(map[windowKey]cause)
	return o
}

// causeKey is what packets that are refused alike have in common, after NAT.
func causeKey(k *connKey) windowKey {
	return windowKey{src: addr(k.src), dst: addr(k.dst), port: k.dstPort, protocol: k.protocol}
}

// look begins to trace attempts that look refused.
func (c *causes) look(u *unconfirmed, now int64) {
	c.asked = 0
	if c.Trace == nil {
		return
	}
	for k, at := range c.traced {
		if now-at > int64(causeTime) {
			delete(c.traced, k)
		}
	}
	var packets []tap.Traced
	for k, w := range u.waiting {
		if len(packets) == maxTraces {
			break
		}
		if !w.traceable(&k, now) {
			continue
		}
		key := causeKey(&k)
		if _, known := c.traced[key]; known || len(c.traced) >= maxCauses {
			continue
		}
		packets = append(packets, w.before(&k))
		c.traced[key] = now
	}
	if len(packets) > 0 && !c.Trace(packets) {
		for i := range packets {
			for k := range c.traced {
				if k.src == packets[i].Src && c.traced[k] == now {
					delete(c.traced, k)
				}
			}
		}
	}
}

// traceable reports whether an attempt looks refused, and may be traced.
func (w *attempted) traceable(k *connKey, now int64) bool {
	return w.tapped.Packets > 0 && w.question == 0 && k.protocol.HasPorts() && now-w.first >= int64(traceAfter)
}

// before is how an attempt's packets come to the tap: before NAT.
func (w *attempted) before(k *connKey) tap.Traced {
	t := tap.Traced{Protocol: k.protocol, Src: addr(k.src), Dst: addr(k.dst), Port: k.dstPort}
	if w.origin {
		t.Dst, t.Port = addr(w.service), w.servicePort
	}
	return t
}

// grace is how long an attempt waits before conntrack is asked.
func (c *causes) grace(k *connKey) int64 {
	if len(c.traced) > 0 {
		if _, traced := c.traced[causeKey(k)]; traced {
			return int64(graceTime + tracedGrace)
		}
	}
	return int64(graceTime)
}

// dropped takes in that a rule of netfilter dropped a traced packet.
func (c *causes) dropped(o *flow.Observation, reason flow.Reason) (windowKey, cause) {
	if len(c.found) >= maxCauses {
		clear(c.found)
	}
	k := windowKey{src: o.Original.Src, dst: o.Original.Dst, port: o.Original.DstPort, protocol: o.Protocol}
	found := cause{reason: reason, at: o.Time}
	if reason != flow.ReasonNone {
		found.told = o.Told
	}
	c.found[k] = found
	return k, found
}

// of finds why an attempt that conntrack never confirmed was refused.
func (c *causes) of(k *connKey, w *attempted) cause {
	key := causeKey(k)
	if found, known := c.found[key]; known && w.last-found.at < int64(causeTime) {
		return found
	}
	// Packets of this node have been routed before the tap sees them.
	if c.Route == nil || w.in == 0 || c.asked >= maxAsked {
		return cause{}
	}
	c.asked++
	return cause{reason: c.Route(route.Packet{Src: key.src, Dst: key.dst, InDev: w.in, Mark: w.mark})}
}

// ruleReason says what a rule that drops packets stands for, by who made it.
// Only where the rules of the plugin that enforces are known, another's can be
// told from them. chains are the names of all tables and chains.
func ruleReason(rule flow.PolicyRef, chains []string) flow.Reason {
	_, table, _ := strings.Cut(rule.Namespace, " ")
	begins := func(prefixes ...string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(rule.Name, p) || strings.HasPrefix(table, p) })
	}
	h := host{chains: chains}
	_, weave := h.chain("WEAVE-NPC")
	_, enforced := h.chain(enforcers()...)
	switch {
	case begins(enforcers()...):
		return flow.ReasonNone
	case slices.Contains(emptyServices(), rule.Name):
		return flow.ReasonNoEndpoint
	case weave && rule.Name == "FORWARD": // where Weave Net's own last rule is
		return flow.ReasonNone
	case enforced || begins(firewalls()...):
		return flow.ReasonFirewall
	}
	return flow.ReasonNone
}

// emptyServices are the chains in which kube-proxy refuses what is for a
// Service without endpoints: of its iptables mode, and of its nftables mode.
func emptyServices() []string {
	return []string{"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "service-endpoints-check", "nodeport-endpoints-check", "reject-chain", "cluster-ips-check"}
}

// firewalls begin the names of tables and chains of well-known host firewalls,
// and of those by which kube-proxy and kubelet protect a host.
func firewalls() []string {
	return []string{"firewalld", "ufw-", "ufw6-", "DOCKER", "KUBE-FIREWALL", "KUBE-PROXY-FIREWALL", "firewall-", "f2b-", "fail2ban"}
}

// routes asks the routing of the node.
type routes struct {
	table  *route.Table // nil if it is not asked
	log    *slog.Logger
	failed bool
}

// openRoutes opens the routing where attempts are seen.
func (a *agent) openRoutes() (*routes, error) {
	r := &routes{log: a.Log}
	if !a.Tap {
		return r, nil
	}
	var err error
	r.table, err = route.Open()
	return r, err
}

func (r *routes) close(log *slog.Logger) {
	if r.table == nil {
		return
	}
	if err := r.table.Close(); err != nil {
		log.Warn("routing was not closed", "error", err)
	}
}

// refuses asks about a packet; what cannot be found out is ReasonNone.
func (r *routes) refuses(p route.Packet) flow.Reason {
	if r.table == nil {
		return flow.ReasonNone
	}
	reason, err := r.table.Refuses(p)
	if err != nil && !r.failed {
		r.failed = true
		r.log.Warn("the routing does not say why a packet is refused, which is said once", "error", err)
	}
	return reason
}

// rulesOf remembers the names of netfilter's tables and chains.
type rulesOf struct {
	chains []string
	read   time.Time
}

// rulesAge is how old the names may be.
const rulesAge = 30 * time.Second

// ruleReason says what a rule that dropped a packet stands for.
func (a *agent) ruleReason(rule flow.PolicyRef) flow.Reason {
	if now := time.Now(); now.Sub(a.rules.read) > rulesAge {
		a.rules = rulesOf{chains: thisHost().chains, read: now}
	}
	return ruleReason(rule, a.rules.chains)
}
