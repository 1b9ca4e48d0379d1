package agent

import "github.com/flowaudit/flowaudit/flow"

// hints joins the records that only hint with the one that decides. k3s logs a
// record with the name of each policy that did not match a packet, and then,
// if none did, one without a name: the policies that selected the pod and let
// nothing of it through are the ones that refused it.
type hints map[hintKey]*flow.Told

type hintKey struct {
	key     windowKey
	srcPort uint16
}

// maxHints bounds what waits: of hints that no decision follows, a packet that
// a later policy allowed, nobody takes the entry away.
const maxHints = 4096

func (h hints) add(k windowKey, o *flow.Observation) {
	if o.Told == nil || len(o.Told.Policies) == 0 {
		return
	}
	if len(h) >= maxHints {
		clear(h)
	}
	at := hintKey{k, o.Original.SrcPort}
	if before := h[at]; before != nil {
		joined := *before
		joined.Policies = addPolicies(before.Policies, o.Told.Policies)
		h[at] = &joined
		return
	}
	h[at] = o.Told
}

// take gives what was hinted about a packet, for its decision.
func (h hints) take(k windowKey, o *flow.Observation) *flow.Told {
	if len(h) == 0 {
		return nil
	}
	k.verdict = flow.VerdictUnknown
	at := hintKey{k, o.Original.SrcPort}
	told := h[at]
	delete(h, at)
	return told
}
