package hubble

import (
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"

	"github.com/flowaudit/flowaudit/flow"
)

// recent knows the denials of the last moment. Cilium tells a refused packet
// twice, by the policy's verdict, which names the policies, and by the drop:
// the second is left out. Where verdicts are switched off the drop is all.
type recent struct {
	verdicts map[denial]int64 // Unix nanoseconds
}

type denial struct {
	protocol flow.Protocol
	tuple    flow.Tuple
}

const (
	recentTime = int64(time.Second)
	maxRecent  = 4096
)

func newRecent() recent { return recent{make(map[denial]int64)} }

// repeats reports whether a flow tells again what was told before.
func (r recent) repeats(f *flowpb.Flow, o *flow.Observation) bool {
	if o.Verdict != flow.VerdictDenied {
		return false
	}
	k := denial{o.Protocol, o.Original}
	if f.GetEventType().GetType() == eventVerdict {
		if len(r.verdicts) >= maxRecent {
			clear(r.verdicts)
		}
		r.verdicts[k] = o.Time
		return false
	}
	at, ok := r.verdicts[k]
	if !ok {
		return false
	}
	delete(r.verdicts, k)
	return o.Time-at < recentTime
}
