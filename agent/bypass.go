package agent

import (
	"context"
	"time"

	"github.com/flowaudit/flowaudit/agent/ipvs"
)

// limitIPVS is said where IPVS serves and does not track.
const limitIPVS = "connections through Services bypass connection tracking on their way through IPVS, and what becomes of them is unknown: net.ipv4.vs.conntrack is 0, set it to 1"

// ipvsEvery is how often IPVS' services are read.
const ipvsEvery = 5 * time.Second

// followIPVS keeps up with IPVS' services until ctx ends.
func (a *agent) followIPVS(ctx context.Context) error {
	ticker := time.NewTicker(ipvsEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			a.readIPVS("/")
		}
	}
}

// readIPVS reads the services that IPVS serves without connection tracking.
// What was read before stands where that fails.
func (a *agent) readIPVS(root string) {
	tracked, err := ipvs.Tracked(root)
	if err == nil && tracked {
		a.ipvs.Store(nil)
		return
	}
	services, err := ipvs.Read(root)
	switch {
	case err != nil:
		a.Log.Warn("connections through IPVS may be taken for refused ones", "error", err)
	case services.Len() == 0:
		a.ipvs.Store(nil)
	default:
		a.ipvs.Store(services)
	}
}
