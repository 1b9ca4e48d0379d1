package agent

import "github.com/flowaudit/flowaudit/flow"

// hints keeps what records say beside their verdict until the packet is
// decided. k3s logs a record with the name of each policy that did not match
// a packet, and then, if none did, one without a name: the policies that
// selected the pod and let nothing of it through are the ones that refused it.
// A refusal that waits for conntrack to contradict it leaves its policy here.
type hints map[hintKey]*flow.Told

type hintKey struct {
	key     windowKey
	srcPort uint16
}

// maxHints bounds what waits: of hints that no decision follows, a packet that
// a later policy allowed, nobody takes the entry away.
const maxHints = 1 << 14

func (h hints) add(k windowKey, o *flow.Observation) {
	if o.Told == nil {
		return
	}
	if len(h) >= maxHints {
		clear(h)
	}
	k.verdict = flow.VerdictUnknown
	at := hintKey{k, o.Original.SrcPort}
	before := h[at]
	if before == nil || before == o.Told {
		h[at] = o.Told
		return
	}
	joined := *before
	joined.Policies = addPolicies(before.Policies, o.Told.Policies)
	if o.Told.Direction != flow.DirectionUnknown {
		joined.Direction = o.Told.Direction
	}
	h[at] = &joined
}

// take gives what was said of a packet, for its decision.
func (h hints) take(k windowKey, srcPort uint16) *flow.Told {
	if len(h) == 0 {
		return nil
	}
	k.verdict = flow.VerdictUnknown
	at := hintKey{k, srcPort}
	told := h[at]
	delete(h, at)
	return told
}
