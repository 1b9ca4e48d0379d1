package durability

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// ledger is what was really sent: datagrams to as many addresses and ports, each
// once, and when.
type ledger struct {
	mu   sync.Mutex
	sent []time.Time
	stop atomic.Bool
	done chan error
}

const portsEach = 50_000

// target is where datagram n goes.
func target(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 99, 0, byte(1 + n/portsEach)}), uint16(1000+n%portsEach))
}

// send sends datagrams at a rate until end is called.
func (l *lab) send(rate int) *ledger {
	g := &ledger{done: make(chan error, 1)}
	go func() {
		g.done <- l.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
			if err != nil {
				return fmt.Errorf("open socket: %w", err)
			}
			defer func() { _ = unix.Close(fd) }() // nothing is buffered
			for began, n := time.Now(), 0; !g.stop.Load(); {
				if n >= int(time.Since(began).Seconds()*float64(rate)) {
					time.Sleep(time.Millisecond)
					continue
				}
				to := target(n)
				// The rule's drop shows as EPERM.
				if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil && !errors.Is(err, unix.EPERM) {
					return fmt.Errorf("send: %w", err)
				}
				n++
				g.mu.Lock()
				g.sent = append(g.sent, time.Now())
				g.mu.Unlock()
			}
			return nil
		})
	}()
	return g
}

func (g *ledger) end(t *testing.T) {
	t.Helper()
	g.stop.Store(true)
	if err := <-g.done; err != nil {
		t.Fatal(err)
	}
}

func (g *ledger) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.sent)
}

// stored is how often the store has each datagram of the ledger.
func (g *ledger) stored(t *testing.T, conn *grpc.ClientConn) []int {
	t.Helper()
	counts := make([]int, g.count())
	for n := 0; n < len(counts); n += portsEach {
		for _, r := range rows(t, conn, fmt.Sprintf("SELECT port, sum(connections) FROM flows WHERE destination_ip = '%s' GROUP BY port", target(n).Addr())) {
			i := n + int(r[0].(float64)) - 1000
			if i >= len(counts) {
				t.Fatalf("the store has a flow to %s, which was never sent", target(i))
			}
			counts[i] = int(r[1].(float64))
		}
	}
	return counts
}

// gap is a time in which the agent says it did not see everything.
type gap struct {
	from, to time.Time
	kind     string
}

func gaps(t *testing.T, conn *grpc.ClientConn) (all []gap) {
	t.Helper()
	for _, r := range rows(t, conn, "SELECT start_ms, end_ms, kind FROM gaps") {
		all = append(all, gap{time.UnixMilli(int64(r[0].(float64))), time.UnixMilli(int64(r[1].(float64))), r[2].(string)})
	}
	return all
}

// slack is how far a packet's time and the window that it is counted in may be apart.
const slack = time.Second

func (g gap) holds(at time.Time) bool {
	return !at.Before(g.from.Add(-slack)) && !at.After(g.to.Add(slack))
}

// verify compares the store with the ledger: nothing twice, and what is not
// there lies in a gap that the agent has told. It returns how much is there.
func (g *ledger) verify(t *testing.T, conn *grpc.ClientConn) (stored, told int) {
	t.Helper()
	all := gaps(t, conn)
	within := func(at time.Time) bool {
		for _, x := range all {
			if x.holds(at) {
				return true
			}
		}
		return false
	}
	twice, untold := 0, 0
	for n, count := range g.stored(t, conn) {
		switch {
		case count > 1:
			if twice++; twice < 10 {
				t.Errorf("datagram %d to %s is stored %d times", n, target(n), count)
			}
		case count == 1:
			stored++
		case within(g.sent[n]):
			told++
		default:
			if untold++; untold < 10 {
				t.Errorf("datagram %d of %s to %s is not stored, and no gap tells of it", n, g.sent[n].Format(time.StampMilli), target(n))
			}
		}
	}
	if twice > 0 || untold > 0 {
		t.Errorf("of %d datagrams %d are stored twice, and %d are lost without being told; gaps %v", g.count(), twice, untold, all)
	}
	return stored, told
}
