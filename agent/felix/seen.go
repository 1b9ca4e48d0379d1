package felix

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/flowaudit/flowaudit/proto/goldmane"
)

// seen knows the flows of the last minutes: when Felix connects again it sends
// all that it still has of the last five, and leaves it to the server to tell
// what is new.
type seen struct {
	mu    sync.Mutex
	flows map[uint64]int64 // Unix seconds when it came
}

const (
	// felixMemory is longer than what Felix sends again.
	felixMemory = 10 * time.Minute
	maxSeen     = 1 << 17
	seenFile    = "felix.json"
)

// first reports whether a flow did not come before.
func (s *seen) first(g *goldmane.Flow, now time.Time) bool {
	h := fnv.New64a()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(g.GetKey())
	if err != nil {
		return true // it was read from the wire, so that it can be written
	}
	_, _ = h.Write(b) // never fails
	_, _ = fmt.Fprint(h, " ", g.GetStartTime(), " ", g.GetEndTime())
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.flows[h.Sum64()]; known {
		return false
	}
	if len(s.flows) >= maxSeen {
		s.forget(now)
	}
	if len(s.flows) < maxSeen {
		s.flows[h.Sum64()] = now.Unix()
	}
	return true
}

func (s *seen) forget(now time.Time) {
	for k, at := range s.flows {
		if now.Unix()-at > int64(felixMemory.Seconds()) {
			delete(s.flows, k)
		}
	}
}

func loadSeen(dir string) (*seen, error) {
	s := &seen{flows: make(map[uint64]int64)}
	if dir == "" {
		return s, nil
	}
	b, err := os.ReadFile(filepath.Join(dir, seenFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s.flows); err != nil || s.flows == nil {
		s.flows = make(map[uint64]int64)
		return s, fmt.Errorf("read %s: damaged", filepath.Join(dir, seenFile))
	}
	return s, nil
}

// save keeps what is known. The file is replaced whole.
func (s *seen) save(dir string, now time.Time) error {
	s.mu.Lock()
	s.forget(now)
	b, err := json.Marshal(s.flows)
	s.mu.Unlock()
	if err != nil || dir == "" {
		return err
	}
	path := filepath.Join(dir, seenFile)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return fmt.Errorf("keep what Felix reported: %w", err)
	}
	return os.Rename(path+".new", path)
}
