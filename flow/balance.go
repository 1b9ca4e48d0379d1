package flow

import "slices"

// balance keeps apart what was counted of a pair's connections and what was
// given out already. Two nodes tell of the same connections in different
// windows: the one that refuses at once, the other when the kernel gives up
// waiting for a reply. The larger count of each window, summed up, would be
// more than happened; the larger sum is not.
type balance struct {
	certain [2]account // of denied and allowed connections
}

// account is one verdict's.
type account struct {
	sides []side // sums since the pair's reports began to touch
	given side
}

// settle sets what a merged flow adds to what was given before. It reports
// false if all that the flow tells was given.
func (b *balance) settle(m *merged) bool {
	empty := !slices.ContainsFunc(m.sides, side.tells)
	switch m.flow.Verdict {
	case VerdictDenied:
		b.certain[0].settle(m)
	case VerdictAllowed:
		b.certain[1].settle(m)
	default:
		b.settleWeak(m)
	}
	return empty || sideOf(&m.flow).tells()
}

// settleOnce settles a flow that may have been settled before its turn.
func (b *balance) settleOnce(m *merged) bool {
	if !m.settled {
		m.settled, m.tells = true, b.settle(m)
	}
	return m.tells
}

func (a *account) settle(m *merged) {
	for i := range m.sides {
		a.side(m.sides[i].node).add(&m.sides[i])
	}
	total := largest(a.sides)
	f := &m.flow
	f.Connections = total.connections - min(total.connections, a.given.connections)
	f.Sent, f.Received = total.sent.less(a.given.sent), total.received.less(a.given.received)
	f.Counted = slices.ContainsFunc(m.sides, func(s side) bool { return s.counted })
	a.given.most(&total)
}

// settleWeak leaves of unanswered connections those that the other node has
// not told more of before, when its windows ended earlier.
func (b *balance) settleWeak(m *merged) {
	m.flow.Connections = 0
	for _, s := range m.sides {
		for i := range b.certain {
			s.connections -= b.certain[i].absorb(s.node, s.connections)
		}
		m.flow.Connections = max(m.flow.Connections, s.connections)
	}
	if m.flow.Connections == 0 {
		m.flow.Sent, m.flow.Received = Counters{}, Counters{}
	}
}

// absorb takes connections of a node as ones that were given already, as many
// as the node still owes.
func (a *account) absorb(node string, connections uint64) uint64 {
	if a.given.connections == 0 {
		return 0
	}
	s := a.side(node)
	n := min(connections, a.given.connections-min(a.given.connections, s.connections))
	s.connections += n
	return n
}

func (a *account) side(node string) *side {
	for i := range a.sides {
		if a.sides[i].node == node {
			return &a.sides[i]
		}
	}
	a.sides = append(a.sides, side{node: node})
	return &a.sides[len(a.sides)-1]
}

// side is what one node reports.
type side struct {
	node           string
	connections    uint64
	sent, received Counters
	counted        bool
}

func sideOf(f *Flow) side {
	return side{f.Node, f.Connections, f.Sent, f.Received, f.Counted}
}

// tells reports whether there is anything in it.
func (s side) tells() bool {
	return s.connections > 0 || s.sent.Packets > 0 || s.received.Packets > 0
}

func (s *side) add(o *side) {
	s.connections += o.connections
	s.sent.add(o.sent)
	s.received.add(o.received)
	s.counted = s.counted || o.counted
}

// most keeps the larger of each number.
func (s *side) most(o *side) {
	s.connections = max(s.connections, o.connections)
	s.sent, s.received = s.sent.most(o.sent), s.received.most(o.received)
}

// largest has the most connections of any side, and the counters of the side
// that counted the most.
func largest(sides []side) side {
	most := sides[0]
	for _, s := range sides[1:] {
		connections := max(most.connections, s.connections)
		if s.counted && (!most.counted || s.bytes() > most.bytes()) {
			most = s
		}
		most.connections = connections
	}
	return most
}

func (s *side) bytes() uint64 { return s.sent.Bytes + s.received.Bytes }

func (c *Counters) add(d Counters) {
	c.Packets += d.Packets
	c.Bytes += d.Bytes
}

func (c Counters) less(d Counters) Counters {
	return Counters{c.Packets - min(c.Packets, d.Packets), c.Bytes - min(c.Bytes, d.Bytes)}
}

func (c Counters) most(d Counters) Counters {
	return Counters{max(c.Packets, d.Packets), max(c.Bytes, d.Bytes)}
}
