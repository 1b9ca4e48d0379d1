package collector

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

func statusOf(t *testing.T, c *running) *flowauditv1.StatusResponse {
	t.Helper()
	s, err := c.query().Status(t.Context(), &flowauditv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStatusOfTheCollectorAndItsStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		c := serve(t, &memory{})
		defer c.close(t)
		if s := statusOf(t, c); s.GetOldest() != 0 || len(s.GetAgents()) != 0 {
			t.Errorf("an empty collector says %v", s)
		}
		time.Sleep(time.Minute) // the bubble's
		c.keep(t, batchOf(1, denied(3)...))
		s := statusOf(t, c)
		if s.GetVersion() != "1.2.3" || s.GetStarted() != began.UnixMilli() || s.GetStore() != "memory" || s.GetFlows() != 3 || s.GetBytes() != 7 ||
			s.GetOldest() != began.Add(time.Minute).UnixMilli() || s.GetCommitted() != 3 || s.GetRejected() != 0 || s.GetUnnamed() != 3 {
			t.Errorf("status %v", s)
		}
	})
}

// TestStatusOfAgents: what each said last, and what it brings a second.
func TestStatusOfAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := serve(t, &memory{})
		defer c.close(t)
		started := time.Now()
		for i := range uint64(4) {
			b := batchFrom("node-2", i+1, denied(50)...)
			b.Scope = flow.ScopePod
			b.Agent = flow.AgentStatus{
				Version: "1.0", Started: started, Observations: 1_000_000 + i*10_000, Connections: 9 + i,
				Sources: []string{"conntrack"}, Limits: []string{"no bytes"},
			}
			c.keep(t, b)
			if i < 3 {
				time.Sleep(10 * time.Second) // the bubble's
			}
		}
		c.keep(t, batchFrom("node-1", 1))
		time.Sleep(5 * time.Second)
		agents := statusOf(t, c).GetAgents()
		if len(agents) != 2 || agents[0].GetNode() != "node-1" {
			t.Fatalf("agents %v, want both by name", agents)
		}
		a := agents[1]
		if a.GetNode() != "node-2" || a.GetInstance() != "node-2" || a.GetScope() != flowauditv1.Scope_SCOPE_POD || a.GetVersion() != "1.0" ||
			a.GetStarted() != started.UnixMilli() || a.GetLastSeen() != time.Now().Add(-5*time.Second).UnixMilli() || a.GetConnections() != 12 ||
			!slices.Equal(a.GetSources(), []string{"conntrack"}) || !slices.Equal(a.GetLimits(), []string{"no bytes"}) {
			t.Errorf("agent %v", a)
		}
		if a.GetFlowsPerSecond() != 5 || a.GetObservationsPerSecond() != 1000 {
			t.Errorf("%g flows and %g observations a second; want 5 and 1000", a.GetFlowsPerSecond(), a.GetObservationsPerSecond())
		}
	})
}

// TestARestartedAgentBeginsToCountAnew: its counter is smaller than before.
func TestARestartedAgentBeginsToCountAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := serve(t, &memory{})
		defer c.close(t)
		report := func(sequence uint64, started time.Time, observations uint64) {
			b := batchOf(sequence)
			b.Agent = flow.AgentStatus{Started: started, Observations: observations}
			c.keep(t, b)
			time.Sleep(10 * time.Second) // the bubble's
		}
		first := time.Now()
		report(1, first, 1_000_000)
		report(2, first, 1_000_100)
		second := time.Now()
		report(3, second, 500_000)
		report(4, second, 500_200)
		if got := statusOf(t, c).GetAgents()[0].GetObservationsPerSecond(); got != 20 {
			t.Errorf("%g observations a second, want 20", got)
		}
	})
}

// TestTheBacklogSaysNothingNewOfAnAgent: a batch that had to wait comes after
// newer ones, of the same run or of the next.
func TestTheBacklogSaysNothingNewOfAnAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := serve(t, &memory{})
		defer c.close(t)
		first, second := time.Now(), time.Now().Add(time.Minute)
		for i, s := range []flow.AgentStatus{
			{Started: second, Observations: 1000, Version: "2"},
			{Started: second, Observations: 500, Version: "1"},
			{Started: first, Observations: 9000, Version: "1"},
			{Started: second, Observations: 2000, Version: "2"},
		} {
			b := batchOf(uint64(i + 1))
			b.Agent = s
			c.keep(t, b)
			time.Sleep(10 * time.Second) // the bubble's
		}
		if a := statusOf(t, c).GetAgents()[0]; a.GetVersion() != "2" || a.GetStarted() != second.UnixMilli() || a.GetObservationsPerSecond() != 1000.0/30 {
			t.Errorf("agent %v, want what it said last, and its rate", a)
		}
	})
}

// TestAgentsAreKnownByClusterAndInstance: two clusters may have a node of one name.
func TestAgentsAreKnownByClusterAndInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := serve(t, &memory{})
		defer c.close(t)
		here, there := batchOf(1), batchOf(1)
		there.Key.Cluster = "another"
		c.keep(t, here, there)
		if n := len(statusOf(t, c).GetAgents()); n != 2 {
			t.Errorf("%d agents, want 2", n)
		}
	})
}

// TestAnAgentWhoseBatchesCannotBeStoredIsNotSilent: the store is at fault.
func TestAnAgentWhoseBatchesCannotBeStoredIsNotSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := serve(t, &memory{onAppend: func([]flow.Batch) error { return errDisk }})
		defer c.close(t)
		b := batchOf(1, denied(1)...)
		b.Gaps = []flow.Gap{{Node: "node-1", Start: b.Start, End: b.End}}
		stream := c.report(t)
		send(t, stream, b)
		if _, err := stream.Recv(); err == nil {
			t.Fatal("acknowledged")
		}
		s := statusOf(t, c)
		if len(s.GetAgents()) != 1 || s.GetAgents()[0].GetLastSeen() != time.Now().UnixMilli() || s.GetCommitted() != 0 || len(s.GetAgents()[0].GetGaps()) != 0 {
			t.Errorf("status %v, want the agent as just heard, and nothing stored", s)
		}
	})
}

func TestGapsOfTheLastHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := serve(t, &memory{})
		defer c.close(t)
		b := batchOf(1)
		for i := range maxAgentGap + 5 {
			b.Gaps = append(b.Gaps, flow.Gap{Node: "node-1", Kind: flow.GapOverrun, Start: b.Start, End: b.Start, Lost: uint64(i)})
		}
		c.keep(t, b)
		gaps := statusOf(t, c).GetAgents()[0].GetGaps()
		if len(gaps) != maxAgentGap || gaps[0].GetLost() != 5 {
			t.Errorf("%d gaps from %v, want the newest %d", len(gaps), gaps[0], maxAgentGap)
		}
		time.Sleep(gapMemory + time.Second) // the bubble's
		if gaps := statusOf(t, c).GetAgents()[0].GetGaps(); len(gaps) != 0 {
			t.Errorf("%d gaps after an hour, want none, though the agent is silent", len(gaps))
		}
		time.Sleep(agentMemory)
		if agents := statusOf(t, c).GetAgents(); len(agents) != 0 {
			t.Errorf("agents %v after a day", agents)
		}
	})
}
