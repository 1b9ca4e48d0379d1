package durability

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestKilledAtRandomMoments kills agent, collector or both while flows come, and
// the network between them cuts, delays, duplicates, reorders and corrupts. In
// the end the store has everything once, but for what the agents say they have
// missed. With FLOWAUDIT_SOAK it does so 200 times instead of 20.
func TestKilledAtRandomMoments(t *testing.T) {
	rounds := 20
	if os.Getenv("FLOWAUDIT_SOAK") != "" {
		rounds = 200
	}
	l := newLab(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	c := collector(t, at("collector.sock"), at("data"))
	c.start()
	answers(t, at("collector.sock"))
	conn := dial(t, at("collector.sock"))
	batches := newBatchProxy(t, at("batches.sock"), conn)
	net := newBytesProxy(t, at("net.sock"), at("batches.sock"))
	if err := os.Mkdir(at("state"), 0o700); err != nil {
		t.Fatal(err)
	}
	a := agent(t, l, at("net.sock"), at("state"))
	a.start()
	a.says("agent reads", 1) // what was sent before the first run nobody tells of
	sent := l.send(2000)
	batches.faults.Store(true)
	net.faults.Store(true)
	for range rounds {
		time.Sleep(time.Duration(300+rand.IntN(2200)) * time.Millisecond)
		victim := rand.IntN(3)
		if victim != 0 {
			a.kill()
		}
		if victim != 1 {
			c.kill()
			conn.ResetConnectBackoff()
			c.start()
		}
		if victim != 0 {
			a.start()
		}
	}
	time.Sleep(2 * time.Second)
	sent.end(t)
	batches.faults.Store(false)
	net.faults.Store(false)
	answers(t, at("collector.sock"))
	conn.ResetConnectBackoff()
	time.Sleep(2 * time.Second) // a window, and the last flows of it
	drained(t, at("state/spool"))
	a.stop()
	stored, told := sent.verify(t, conn)
	batches.verify(t, sent.stored(t, conn))
	t.Logf("%d rounds: %d datagrams, %d stored once, %d in gaps that were told", rounds, sent.count(), stored, told)
	if stored < sent.count()/3 {
		t.Errorf("only %d of %d datagrams are stored: the rest proves little", stored, sent.count())
	}
}
