package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/flowaudit/flowaudit/flow"
)

// stage is an index that is told things at seconds after epoch.
type stage struct {
	*Index
	t *testing.T
}

func newStage(t *testing.T) *stage { return &stage{NewIndex(), t} }

func sec(s float64) time.Time { return epoch.Add(time.Duration(s * float64(time.Second))) }

func apiTime(s float64) *metav1.Time {
	m := metav1.NewTime(sec(s).Truncate(time.Second))
	return &m
}

// runs is a pod whose container started at a time.
func runs(name, ip string, started float64) *corev1.Pod {
	p := newPod("shop", name)
	p.CreationTimestamp = *apiTime(started)
	p.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, StartTime: apiTime(started),
		ContainerStatuses: []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: *apiTime(started)}}}},
	}
	for _, a := range strings.Fields(ip) {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a})
	}
	return p
}

func terminating(p *corev1.Pod, asked float64) *corev1.Pod {
	p = p.DeepCopy()
	grace := int64(30)
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = apiTime(asked+30), &grace
	return p
}

func finished(p *corev1.Pod, at float64) *corev1.Pod {
	p = p.DeepCopy()
	p.Status.Phase = corev1.PodSucceeded
	p.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{FinishedAt: *apiTime(at)}}
	return p
}

func (s *stage) set(at float64, p *corev1.Pod) { s.setPod(factsOf(p), live(sec(at))) }

func (s *stage) gone(at float64, p *corev1.Pod) {
	s.set(at, p)
	s.deletePod(podKey{p.Namespace, p.Name}, live(sec(at)))
}

// want checks who had an address at times.
func (s *stage) want(addr string, answers map[float64]string) {
	s.t.Helper()
	for at, want := range answers {
		e := s.Endpoint(netip.MustParseAddr(addr), sec(at))
		got := e.Kind.String()
		switch e.Kind {
		case flow.EndpointPod:
			got = e.Pod
		case flow.EndpointAmbiguous:
			names := slices.Clone(e.Candidates)
			slices.Sort(names)
			got += " " + strings.ReplaceAll(strings.Join(names, " "), "shop/", "")
		}
		if got != want {
			s.t.Errorf("at %.1f s %s is %q, want %q", at, addr, got, want)
		}
	}
}

func TestAddressChangesHands(t *testing.T) {
	t.Run("after an announced end", func(t *testing.T) {
		s := newStage(t)
		old := runs("old", "10.0.0.1", 0)
		s.set(0.5, old)
		s.set(10.3, terminating(old, 10.2))
		s.set(14.9, finished(terminating(old, 10.2), 14.6))
		s.gone(15.1, finished(terminating(old, 10.2), 14.6))
		next := runs("next", "10.0.0.1", 16.4)
		s.set(17.2, next)
		s.want("10.0.0.1", map[float64]string{
			-1: "unknown", 0.4: "old", 5: "old", 13: "old", // asked to end, it may talk for long
			14.8: "old", 15.5: "ambiguous old", // what an agent reads late may be its
			16.2: "next", 16.5: "next", 17.1: "next", 60: "next",
		})
	})
	t.Run("within the same second", func(t *testing.T) {
		s := newStage(t)
		old := runs("old", "10.0.0.1", 0)
		s.set(0.5, old)
		s.set(14.7, finished(old, 14.6))
		s.set(14.9, runs("next", "10.0.0.1", 14.7))
		s.want("10.0.0.1", map[float64]string{13: "old", 14.3: "ambiguous next old", 14.65: "ambiguous next old", 14.8: "ambiguous next old", 14.95: "next"})
	})
	t.Run("before anybody says that it ended", func(t *testing.T) {
		s := newStage(t)
		old := runs("old", "10.0.0.1", 0)
		s.set(0.5, old)
		s.gone(20, old) // by force
		s.want("10.0.0.1", map[float64]string{18: "old", 19.5: "ambiguous old", 25: "ambiguous old", 60: "unknown"})
		s.set(21, runs("next", "10.0.0.1", 19.8))
		s.want("10.0.0.1", map[float64]string{18: "old", 19.5: "ambiguous next old", 20.5: "next"})
	})
	t.Run("to another pod of the same name", func(t *testing.T) {
		s := newStage(t)
		old := runs("db-0", "10.0.0.1", 0)
		s.set(0.5, old)
		next := runs("db-0", "10.0.0.2", 20)
		next.UID = "another"
		s.set(21, next)
		s.want("10.0.0.1", map[float64]string{10: "db-0", 60: "unknown"})
		s.want("10.0.0.2", map[float64]string{10: "unknown", 20.5: "db-0"})
	})
	t.Run("of a pod whose node was started anew", func(t *testing.T) {
		s := newStage(t)
		p := runs("web", "10.0.0.1", 0)
		s.set(0.5, p)
		again := runs("web", "10.0.0.2", 0)
		again.Status.ContainerStatuses[0].State.Running.StartedAt = *apiTime(100)
		s.set(101, again)
		s.set(110, runs("other", "10.0.0.1", 105))
		s.want("10.0.0.2", map[float64]string{0.2: "unknown", 102: "web"})
		s.want("10.0.0.1", map[float64]string{50: "web", 120: "other"})
	})
	t.Run("between two pods, since their node was started anew", func(t *testing.T) {
		s := newStage(t)
		a, b := runs("a", "10.0.0.1", 0), runs("b", "10.0.0.2", 0)
		s.set(0.5, a)
		s.set(0.6, b)
		again := func(name, addr string) *corev1.Pod {
			p := runs(name, addr, 0)
			p.Status.ContainerStatuses[0].State.Running.StartedAt = *apiTime(100)
			return p
		}
		s.set(100.2, again("a", "")) // its old network is gone
		s.set(100.4, again("b", "10.0.0.1"))
		s.set(100.8, again("a", "10.0.0.2"))
		s.want("10.0.0.1", map[float64]string{50: "a", 90: "a", 91: "ambiguous a b", 100.3: "ambiguous a b", 100.5: "b", 110: "b", 140: "b"})
		s.want("10.0.0.2", map[float64]string{50: "b", 99: "b", 100: "ambiguous b", 100.7: "ambiguous a b", 100.9: "a", 110: "a", 140: "a"})
	})
	t.Run("to one whom a list tells of, after another whom nobody told of", func(t *testing.T) {
		s := newStage(t)
		old := runs("old", "10.0.0.1", 0)
		s.set(0.5, old)
		s.gone(10.1, finished(old, 10))
		m := live(sec(30))
		m.asOf, m.listed = sec(12).UnixNano(), true
		next := runs("next", "10.0.0.1", 20.9)
		s.setPod(factsOf(next), m)
		// In 20.0 to 20.9 s it may have been anybody's.
		s.want("10.0.0.1", map[float64]string{5: "old", 15: "unknown", 20.5: "unknown", 21.5: "next"})
	})
	t.Run("of both families at once", func(t *testing.T) {
		s := newStage(t)
		p := runs("web", "10.0.0.1 fd00::1", 0)
		s.set(0.5, p)
		s.gone(20, finished(p, 19))
		for _, a := range []string{"10.0.0.1", "fd00::1"} {
			s.want(a, map[float64]string{10: "web", 30: "unknown"})
		}
	})
}

func TestTwoPodsWithOneAddress(t *testing.T) {
	s := newStage(t)
	s.set(0, runs("a", "10.0.0.1", 0))
	b := runs("b", "10.0.0.1", 5)
	s.set(6, b)
	s.want("10.0.0.1", map[float64]string{4: "a", 10: "ambiguous a b"})
	if st := s.Stats(); st.Ambiguous != 1 || len(st.Problems) != 1 || st.Problems[0] != "Pod shop/b: address 10.0.0.1 is also claimed by Pod shop/a: neither is named by it" {
		t.Errorf("%+v", st)
	}
	s.gone(20, finished(b, 19))
	s.want("10.0.0.1", map[float64]string{4: "a", 10: "ambiguous a b", 30: "a"})
	if st := s.Stats(); st.Ambiguous != 0 || len(st.Problems) != 0 {
		t.Errorf("it is over, and still told: %+v", st)
	}
}

func TestAPodsLabelsChange(t *testing.T) {
	s := newStage(t)
	p := runs("web", "10.0.0.1", 0)
	s.set(0.5, p)
	before := s.Endpoint(netip.MustParseAddr("10.0.0.1"), sec(5))
	p.Labels = map[string]string{"app": "other", "pod-template-hash": "x"}
	s.set(10, p)
	now := s.Pod(netip.MustParseAddr("10.0.0.1"), sec(11))
	if then := s.Endpoint(netip.MustParseAddr("10.0.0.1"), sec(5)); then != before {
		t.Errorf("the past has another name: %+v", then)
	}
	if now.Identity == before.Identity || now.Labels["app"] != "other" || len(now.Labels) != 1 || len(now.AllLabels) != 2 {
		t.Errorf("%+v", now)
	}
	p.Labels["pod-template-hash"] = "y"
	s.set(20, p)
	if again := s.Endpoint(netip.MustParseAddr("10.0.0.1"), sec(21)); again.Identity != now.Identity {
		t.Error("a volatile label makes another identity")
	}
}

func TestHostNetworkPodsAreCandidates(t *testing.T) {
	s := newStage(t)
	s.setNode(newNode("n1", "192.168.0.1"), live(sec(0)))
	host := func(name string) *corev1.Pod {
		p := runs(name, "192.168.0.1", 0)
		p.Spec.HostNetwork = true
		return p
	}
	candidates := func(at float64) string {
		e := s.Endpoint(netip.MustParseAddr("192.168.0.1"), sec(at))
		return fmt.Sprintf("%s %s %v", e.Kind, e.Node, e.Candidates)
	}
	s.set(1, host("proxy"))
	s.set(10, host("agent"))
	s.gone(20, finished(host("proxy"), 19))
	for at, want := range map[float64]string{5: "node n1 [shop/proxy]", 15: "node n1 [shop/agent shop/proxy]", 25: "node n1 [shop/agent]"} {
		if got := candidates(at); got != want {
			t.Errorf("at %.0f s %q, want %q", at, got, want)
		}
	}
	if p := s.Pod(netip.MustParseAddr("192.168.0.1"), sec(15)); p != nil {
		t.Errorf("one of them is guessed: %+v", p)
	}
}

func TestWhatIsThereAtTheStart(t *testing.T) {
	s := newStage(t)
	p := runs("web", "10.0.0.1", 0)
	s.setPod(factsOf(p), starting(sec(100)))
	s.want("10.0.0.1", map[float64]string{-5: "unknown", 1: "web", 200: "web"})
}

func TestNewsMayStillCome(t *testing.T) {
	s := newStage(t)
	s.setNode(newNode("n1", "192.168.0.1"), live(sec(0)))
	old := runs("old", "10.0.0.1", 0)
	s.set(0.5, old)
	s.set(0.5, runs("goes", "10.0.0.2", 0))
	s.set(10, terminating(runs("goes", "10.0.0.2", 0), 10))
	for _, c := range []struct {
		addr string
		want time.Duration
	}{
		{"10.0.0.1", settling}, {"10.0.0.2", settling}, {"10.0.0.3", settling}, // among pods' addresses
		{"192.168.0.1", 0}, {"203.0.113.1", 0},
	} {
		if _, news := s.Holder(netip.MustParseAddr(c.addr), sec(20), sec(20)); news != c.want {
			t.Errorf("%s: %s, want %s", c.addr, news, c.want)
		}
	}
}

func TestSlowNewsIsWaitedForLonger(t *testing.T) {
	s := newStage(t)
	wait := func(at float64) time.Duration {
		_, news := s.Holder(netip.MustParseAddr("10.0.0.1"), sec(at), sec(at))
		return news
	}
	s.set(0.5, runs("prompt", "10.0.0.1", 0))
	if d := wait(1); d != settling {
		t.Errorf("%s where news is prompt, want %s", d, settling)
	}
	s.set(12.5, runs("slow", "10.0.0.2", 10))
	if d := wait(13); d != settling+3*time.Second {
		t.Errorf("%s after news that was 1.5 to 2.5 s late", d)
	}
	s.set(70, runs("stuck", "10.0.0.3", 20))
	if d := wait(71); d != maxSettling {
		t.Errorf("%s after news that was very late, want a bound of %s", d, maxSettling)
	}
	s.set(80.5, runs("prompt-2", "10.0.0.4", 80))
	s.set(91.5, runs("prompt-3", "10.0.0.5", 91))
	if d := wait(92); d != settling {
		t.Errorf("%s when news is prompt again, want %s", d, settling)
	}
}

func TestAPodThatBeginsMayHaveAnothersAddress(t *testing.T) {
	s := newStage(t)
	wait := func(at float64) time.Duration {
		_, news := s.Holder(netip.MustParseAddr("10.0.0.1"), sec(at), sec(at))
		return news
	}
	s.set(0.5, runs("old", "10.0.0.1", 0))
	begins := newPod("shop", "next")
	begins.CreationTimestamp = *apiTime(30)
	s.set(30.1, begins)
	if d := wait(30.5); d != maxSettling {
		t.Errorf("%s while a pod's address is awaited, want %s", d, maxSettling)
	}
	if d := wait(60); d != settling {
		t.Errorf("%s when it has waited long for something else, want %s", d, settling)
	}
	next := runs("next", "10.0.0.1", 30)
	s.set(34, next) // and the old one is still said to run
	if d := wait(34.5); d >= maxSettling {
		t.Errorf("%s when its address is told", d)
	}
	s.want("10.0.0.1", map[float64]string{29.5: "old", 30.5: "ambiguous next old", 32: "ambiguous next old"})
	s.gone(40, runs("old", "10.0.0.1", 0))
	s.want("10.0.0.1", map[float64]string{29.5: "old", 30.5: "ambiguous next old", 32: "next", 50: "next"})
}

func TestLifeOf(t *testing.T) {
	ran := runs("web", "10.0.0.1", 5)
	waiting := newPod("shop", "web")
	waiting.CreationTimestamp = *apiTime(3)
	evicted := runs("web", "10.0.0.1", 5)
	evicted.Status.Phase, evicted.Status.ContainerStatuses = corev1.PodFailed, nil
	restarted := runs("web", "10.0.0.1", 5)
	restarted.Status.ContainerStatuses[0].LastTerminationState = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{StartedAt: *apiTime(1), FinishedAt: *apiTime(4)}}
	both := runs("web", "10.0.0.1", 5)
	both.Status.ContainerStatuses = append(both.Status.ContainerStatuses, finished(ran, 8).Status.ContainerStatuses[0])
	n := func(s float64) int64 { return sec(s).UnixNano() }
	for _, c := range []struct {
		name string
		pod  *corev1.Pod
		want podLife
	}{
		{"it waits for a node", waiting, podLife{start: n(3)}},
		{"it runs", ran, podLife{start: n(5), proof: n(6)}},
		{"it was asked to end", terminating(ran, 9), podLife{start: n(5), proof: n(6), asked: n(9)}},
		{"it has ended", finished(ran, 8), podLife{start: n(5), stopped: n(8), ended: true}},
		{"it was evicted, and nobody says when", evicted, podLife{start: n(5), ended: true}},
		{"a run before the present one proves nothing", restarted, podLife{start: n(5), proof: n(6)}},
		{"one container of two has ended", terminating(both, 9), podLife{start: n(5), proof: n(6), asked: n(9)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.want.created = nanos(&c.pod.CreationTimestamp)
			if got := lifeOf(c.pod); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

func TestNamesLeaveWithTheirTime(t *testing.T) {
	s := newStage(t)
	for i := range 100 {
		p := runs(fmt.Sprint("p", i), "10.0.0.1", float64(10*i))
		p.UID = types.UID(p.Name)
		s.set(float64(10*i+1), p)
		s.gone(float64(10*i+9), finished(p, float64(10*i+8)))
	}
	if n := s.Stats().Ended; n != 100 {
		t.Fatalf("%d past holders, want 100", n)
	}
	later := historyKept.Seconds() + 500
	p := runs("last", "10.0.0.2", later)
	s.set(later+1, p)
	s.gone(later+9, finished(p, later+8))
	if n := s.Stats().Ended; n > 52 || n < 50 {
		t.Errorf("%d past holders after %s, want those of the last hours", n, historyKept)
	}
	s.want("10.0.0.1", map[float64]string{15: "unknown", 995: "p99"})
}
