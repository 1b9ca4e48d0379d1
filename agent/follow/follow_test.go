package follow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// numbers is a parser for these tests: "line N" tells a verdict, "bad" should
// and cannot be read, and the rest is about something else.
type numbers struct{}

func (numbers) Parse(line []byte, o *flow.Observation) (bool, error) {
	if bytes.HasPrefix(line, []byte("bad")) {
		return false, errors.New("bad line")
	}
	_, err := fmt.Sscanf(string(line), "line %d", &o.ID)
	return err == nil, nil
}

// log is a directory with a growing log, and who follows it.
type logDir struct {
	t        *testing.T
	path     string
	stateDir string
	pattern  string
	memory   *Memory
	said     bytes.Buffer
	gaps     []flow.Gap
	got      []uint32
	source   *Source
	stop     func()
	next     int
}

func newLog(t *testing.T, name string) *logDir {
	dir := t.TempDir()
	l := &logDir{t: t, path: filepath.Join(dir, name), stateDir: t.TempDir(), memory: &Memory{}}
	l.pattern = l.path
	return l
}

// write appends n numbered lines to a file.
func (l *logDir) write(path string, n int) {
	l.t.Helper()
	for range n {
		l.next++
		l.raw(path, fmt.Sprintf("line %d\n", l.next))
	}
}

func (l *logDir) raw(path, text string) {
	l.t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		l.t.Fatal(err)
	}
}

func (l *logDir) rename(from, to string) {
	l.t.Helper()
	if err := os.Rename(from, to); err != nil {
		l.t.Fatal(err)
	}
}

func (l *logDir) open() error {
	s, err := Open(Options{
		Name: "test", Node: "n1", Path: l.pattern, Parser: numbers{}, Hint: "switch it on", StateDir: l.stateDir, Memory: l.memory,
		Deliver: func(filled []flow.Observation) []flow.Observation {
			for _, o := range filled {
				l.got = append(l.got, o.ID)
			}
			return make([]flow.Observation, 0, 4)
		},
		Lost:   func(g flow.Gap) { l.gaps = append(l.gaps, g) },
		Logger: slog.New(slog.NewTextHandler(&l.said, nil)),
	})
	l.source = s
	return err
}

// follow starts reading.
func (l *logDir) follow() {
	l.t.Helper()
	if err := l.open(); err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.t.Context())
	done := make(chan error, 1)
	go func() { done <- l.source.Run(ctx) }()
	l.stop = func() {
		cancel()
		if err := <-done; err != nil {
			l.t.Error(err)
		}
	}
	l.look()
}

// look lets the source look once.
func (l *logDir) look() {
	time.Sleep(pollInterval)
	synctest.Wait()
}

// restart stops the source and begins with a new memory, as a new process does.
func (l *logDir) restart(meanwhile func()) {
	l.stop()
	l.memory = &Memory{}
	meanwhile()
	l.follow()
}

// want holds that exactly the lines from the first to the last one written have come, each once and in order.
func (l *logDir) want(first int) {
	l.t.Helper()
	var want []uint32
	for i := first; i <= l.next; i++ {
		want = append(want, uint32(i))
	}
	if !slices.Equal(l.got, want) {
		l.t.Errorf("got lines %v, want %v", l.got, want)
	}
	if len(l.gaps) > 0 {
		l.t.Errorf("gaps %+v, though nothing was lost", l.gaps)
	}
}

func TestFollow(t *testing.T) {
	for _, c := range []struct {
		name string
		play func(l *logDir)
	}{
		{"a growing file", func(l *logDir) {
			l.write(l.path, 9)
			l.look()
		}},
		{"a line that comes in two writes", func(l *logDir) {
			l.next++
			l.raw(l.path, "line ")
			l.look()
			l.raw(l.path, "4\nline")
			l.look()
			l.next++
			l.raw(l.path, " 5\n")
			l.look()
		}},
		{"rename and create", func(l *logDir) {
			l.write(l.path, 2)
			l.rename(l.path, l.path+".1")
			l.look()
			l.write(l.path, 2)
			l.look()
		}},
		{"a writer that goes on with the old file until it opens the new one", func(l *logDir) {
			l.rename(l.path, l.path+".1")
			l.raw(l.path, "")
			l.look()
			l.write(l.path+".1", 2)
			l.look()
			l.write(l.path+".1", 1)
			l.write(l.path, 2)
			l.look()
		}},
		{"rotation twice between two looks", func(l *logDir) {
			l.write(l.path, 1)
			l.rename(l.path, l.path+".1")
			l.write(l.path, 2)
			l.rename(l.path+".1", l.path+".2")
			l.rename(l.path, l.path+".1")
			l.write(l.path, 2)
			l.look()
			l.write(l.path, 1)
			l.look()
		}},
		{"a last line without its end", func(l *logDir) {
			l.next++
			l.raw(l.path, "line 4")
			l.rename(l.path, l.path+".1")
			l.write(l.path, 2)
			l.look()
		}},
		{"copy and truncate", func(l *logDir) {
			l.write(l.path, 2)
			b, err := os.ReadFile(l.path)
			if err != nil {
				l.t.Fatal(err)
			}
			l.raw(l.path+".1", string(b))
			l.look()
			if err := os.Truncate(l.path, 0); err != nil {
				l.t.Fatal(err)
			}
			l.write(l.path, 1)
			l.look()
			l.write(l.path, 3)
			l.look()
		}},
		{"copy and truncate between two looks, and grown beyond where it was", func(l *logDir) {
			l.write(l.path, 2)
			b, err := os.ReadFile(l.path)
			if err != nil {
				l.t.Fatal(err)
			}
			l.raw(l.path+".1", string(b))
			if err := os.Truncate(l.path, 0); err != nil {
				l.t.Fatal(err)
			}
			l.write(l.path, 30)
			l.look()
			l.write(l.path, 3)
			l.look()
		}},
		{"a restart", func(l *logDir) {
			l.write(l.path, 2)
			l.restart(func() { l.write(l.path, 3) })
			l.write(l.path, 1)
			l.look()
		}},
		{"a restart, and a line whose beginning was there before", func(l *logDir) {
			l.next++
			l.raw(l.path, "line")
			l.look()
			l.restart(func() { l.raw(l.path, " 4\n") })
		}},
		{"a restart, and rotation meanwhile", func(l *logDir) {
			l.write(l.path, 2)
			l.restart(func() {
				l.write(l.path, 2)
				l.rename(l.path, l.path+".1")
				l.write(l.path, 2)
			})
			l.look()
		}},
		{"a restart, and rotation twice meanwhile", func(l *logDir) {
			l.restart(func() {
				l.write(l.path, 2)
				l.rename(l.path, l.path+".1")
				l.write(l.path, 2)
				l.rename(l.path+".1", l.path+".2")
				l.rename(l.path, l.path+".1")
				l.write(l.path, 2)
			})
			l.look()
			l.write(l.path, 1)
			l.look()
		}},
		{"the source is opened again", func(l *logDir) {
			l.stop()
			l.write(l.path, 2)
			l.follow()
		}},
		{"removed and made anew", func(l *logDir) {
			l.write(l.path, 1)
			l.look()
			if err := os.Remove(l.path); err != nil {
				l.t.Fatal(err)
			}
			l.look()
			l.write(l.path, 2)
			l.look()
		}},
	} {
		for _, pattern := range []string{"np.log", "np.lo[g]"} {
			t.Run(c.name+", as "+pattern, func(t *testing.T) {
				l := newLog(t, "np.log")
				l.pattern = filepath.Join(filepath.Dir(l.path), pattern)
				synctest.Test(t, func(t *testing.T) {
					l.t = t
					l.write(l.path, 3) // before the agent ever ran
					l.follow()
					c.play(l)
					l.stop()
					l.want(4)
				})
			})
		}
	}
}

func TestAPatternFollowsTheNewestContainer(t *testing.T) {
	l := newLog(t, "0.log")
	dir := filepath.Dir(l.path)
	pod := func(name string) string {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name, "0.log")
	}
	l.pattern = filepath.Join(dir, "kube-system_weave-net-*", "*.log")
	first, second := pod("kube-system_weave-net-a"), pod("kube-system_weave-net-b")
	synctest.Test(t, func(t *testing.T) {
		l.t = t
		l.write(first, 2)
		l.follow()
		l.write(first, 2)
		l.look()
		l.rename(first, first+".20260101-120000") // by the kubelet
		l.write(first, 1)
		l.look()
		again := filepath.Join(filepath.Dir(first), "1.log") // the container restarts
		l.write(again, 2)
		l.look()
		l.write(second, 2) // the pod is replaced
		l.look()
		l.write(second, 1)
		l.look()
		l.stop()
		l.want(3)
	})
}

func TestALogThatComesLaterIsReadFromItsBeginning(t *testing.T) {
	l := newLog(t, "np.log")
	synctest.Test(t, func(t *testing.T) {
		l.t = t
		err := l.open()
		if err == nil || !strings.Contains(err.Error(), "there is no such file: switch it on") {
			t.Fatalf("error %v, want one that says how the log is switched on", err)
		}
		l.write(l.path, 2)
		l.follow()
		l.stop()
		l.want(1)
	})
}

func TestLossIsTold(t *testing.T) {
	for _, c := range []struct {
		name string
		play func(l *logDir)
		got  []uint32
	}{
		{"emptied without a copy", func(l *logDir) {
			l.write(l.path, 1)
			if err := os.Truncate(l.path, 0); err != nil {
				l.t.Fatal(err)
			}
			l.write(l.path, 1)
			l.look()
		}, []uint32{5}},
		{"rotated away while the agent did not run", func(l *logDir) {
			l.restart(func() {
				l.write(l.path, 1)
				if err := os.Remove(l.path); err != nil {
					l.t.Fatal(err)
				}
				l.raw(l.path, strings.Repeat("something else\n", 9))
				l.write(l.path, 1)
			})
		}, []uint32{5}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLog(t, "np.log")
			synctest.Test(t, func(t *testing.T) {
				l.t = t
				l.write(l.path, 3)
				l.follow()
				c.play(l)
				l.stop()
				if !slices.Equal(l.got, c.got) {
					t.Errorf("got lines %v, want %v", l.got, c.got)
				}
				if len(l.gaps) != 1 || l.gaps[0].Kind != flow.GapSource || l.gaps[0].Source != "test" || !l.gaps[0].End.After(l.gaps[0].Start) {
					t.Errorf("gaps %+v, want one of this source over the time that was not read", l.gaps)
				}
			})
		})
	}
}

func TestLinesThatCannotBeReadAreCountedAndShownOnce(t *testing.T) {
	l := newLog(t, "np.log")
	synctest.Test(t, func(t *testing.T) {
		l.t = t
		l.raw(l.path, "")
		l.follow()
		l.raw(l.path, "bad one\nbad two\n"+strings.Repeat("x", 2*maxLine)+"\n\r\n")
		l.write(l.path, 1)
		l.look()
		l.stop()
		l.want(1)
		if got := l.source.Stats(); got != (Stats{Lines: 5, Records: 1, Malformed: 3}) || l.source.Malformed() != 3 {
			t.Errorf("stats %+v", got)
		}
		if said := l.said.String(); strings.Count(said, "cannot be read") != 1 || !strings.Contains(said, `"bad one"`) {
			t.Errorf("said %q, want the first line once", said)
		}
	})
}

func TestALogOfAnotherProgramIsSaidSo(t *testing.T) {
	l := newLog(t, "np.log")
	synctest.Test(t, func(t *testing.T) {
		l.t = t
		l.raw(l.path, "")
		l.follow()
		l.raw(l.path, strings.Repeat("no verdict\n", 3*manyLines))
		l.look()
		l.stop()
		if said := l.said.String(); strings.Count(said, "no line of a log tells a verdict") != 1 || !strings.Contains(said, "switch it on") {
			t.Errorf("said %q", said)
		}
	})
}

func TestADamagedPlaceIsNotTakenOver(t *testing.T) {
	l := newLog(t, "np.log")
	if err := os.WriteFile(filepath.Join(l.stateDir, "log-test.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		l.t = t
		l.write(l.path, 2)
		l.follow()
		l.write(l.path, 1)
		l.look()
		l.stop()
		l.want(3)
		if !strings.Contains(l.said.String(), "not taken over") {
			t.Errorf("said %q", l.said.String())
		}
	})
}

func TestAFullDiskStopsNothing(t *testing.T) {
	l := newLog(t, "np.log")
	l.stateDir = filepath.Join(l.stateDir, "gone")
	synctest.Test(t, func(t *testing.T) {
		l.t = t
		l.raw(l.path, "")
		l.follow()
		for range 3 {
			l.write(l.path, 1)
			l.look()
		}
		l.stop()
		l.want(1)
		if said := l.said.String(); strings.Count(said, "place is not kept") != 1 {
			t.Errorf("said %q, want it once", said)
		}
	})
}

func TestOptionsNameWhatIsMissing(t *testing.T) {
	if _, err := Open(Options{}); err == nil {
		t.Error("opened without options")
	}
}

func TestRotatedNames(t *testing.T) {
	for name, want := range map[string]bool{
		"np.log.1": true, "np.log-20260101": true, "np-2026-01-01T12-00-00.000.log": true, "np.log": false,
		"np.log.2.gz": false, "other.log": false, "np-x.txt": false, "np.log.new": false,
	} {
		if got := rotated("np.log", name); got != want {
			t.Errorf("rotated(%q) = %t", name, got)
		}
	}
	if !rotated("0.log", "0.log.20260101-120000") || rotated("0.log", "1.log") {
		t.Error("the kubelet's names")
	}
}
