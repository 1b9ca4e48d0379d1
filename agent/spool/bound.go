package spool

import (
	"fmt"
	"time"
)

// makeRoom drops the oldest files until need more bytes fit. Files of Low go
// first; the one that is written to goes last.
func (s *Spool) makeRoom(need int64) {
	for s.bytes+need > s.MaxBytes {
		g := s.oldest()
		if g == nil {
			return
		}
		s.discard(g, fmt.Sprintf("the spool is full: %d MiB", s.MaxBytes>>20))
	}
}

func (s *Spool) oldest() *segment {
	for l := range lanes {
		if s.active[l] != nil && !s.closed(l) {
			s.close(l)
		}
		for _, g := range s.segments {
			if a := s.active[l]; g.lane == l && (a == nil || a.segment != g) {
				return g
			}
		}
	}
	return nil
}

// closed reports whether a lane has a file that is not written to any more.
func (s *Spool) closed(l Lane) bool {
	for _, g := range s.segments {
		if a := s.active[l]; g.lane == l && (a == nil || a.segment != g) {
			return true
		}
	}
	return false
}

// age drops files that have not been written to for too long.
func (s *Spool) age() {
	for len(s.segments) > 0 {
		g := s.segments[0]
		if a := s.active[g.lane]; time.Since(g.used) < s.MaxAge || a != nil && a.segment == g {
			return
		}
		s.discard(g, fmt.Sprintf("it waited in the spool for more than %s", s.MaxAge))
	}
}

// discard deletes a file, and tells what of it was not acknowledged.
func (s *Spool) discard(g *segment, why string) {
	l := Loss{Detail: why}
	b, err := readSegment(g.path, 0, g.size)
	s.warn("what is dropped from the spool cannot be counted", err)
	for at := 0; ; {
		f, ok := find(b, at)
		if !ok {
			break
		}
		at = f.next
		if _, done := g.acked[f.Sequence]; done {
			continue
		}
		if l.Start.IsZero() || f.Start.Before(l.Start) {
			l.Start = f.Start
		}
		l.End = later(l.End, f.End)
		l.Flows += uint64(f.Flows)
		l.Records++
	}
	if g.own {
		s.unacked -= g.unacked()
	}
	s.remove(g)
	if l.Records > 0 {
		s.lose(l)
	}
}
