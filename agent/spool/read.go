package spool

import "time"

// Next gives the oldest record that waits and was not given yet: those of High
// before those of Low, and of this run only sequences below before. False means
// that there is none now.
func (s *Spool) Next(before uint64) (Record, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := High + 1; l > 0; l-- {
		for _, g := range s.toRead(l - 1) {
			r, ok, err := s.nextOf(g, before)
			if ok || err != nil {
				return r, ok, err
			}
		}
	}
	return Record{}, false, nil
}

// toRead are a lane's segments that may hold more.
func (s *Spool) toRead(l Lane) []*segment {
	var all []*segment
	for _, g := range s.segments {
		if g.lane == l && int64(g.pos) < g.size {
			all = append(all, g)
		}
	}
	return all
}

// nextOf gives a segment's next record that waits.
func (s *Spool) nextOf(g *segment, before uint64) (Record, bool, error) {
	if g.own && (g.unacked() == 0 || g.first >= before) {
		return Record{}, false, nil
	}
	if err := s.load(g); err != nil {
		return Record{}, false, err
	}
	for {
		f, ok := find(s.cursor.data, max(g.pos, headerSize))
		if ok && g.own && f.Sequence >= before {
			return Record{}, false, nil
		}
		s.damaged(g, &f, ok)
		if !ok {
			s.end(g)
			return Record{}, false, s.clear(g)
		}
		g.pos, g.until = f.next, f.End
		if !f.whole {
			continue
		}
		if g.read++; g.pos == len(s.cursor.data) {
			s.end(g)
		}
		if _, done := g.acked[f.Sequence]; done {
			continue
		}
		f.Lane, f.segment = g.lane, g
		return f.Record, true, nil
	}
}

// load reads a segment's file, or what was written to it since.
func (s *Spool) load(g *segment) error {
	c := &s.cursor
	if c.segment != g {
		c.segment, c.data = g, nil
	}
	have := int64(len(c.data))
	if have >= g.size {
		return nil
	}
	more, err := readSegment(g.path, have, g.size)
	if err != nil {
		return err
	}
	c.data = append(c.data, more...)
	return nil
}

// damaged tells what cannot be read between the place of a segment and the
// record that was found behind it, or its end. It is told once.
func (s *Spool) damaged(g *segment, f *found, ok bool) {
	if g.ended {
		return
	}
	at := max(g.pos, headerSize)
	if !ok {
		f.skipped = len(s.cursor.data) - at
	}
	if f.skipped > 0 {
		s.Log.Error("part of a spool file is damaged and was skipped", "file", g.path, "at", at, "bytes", f.skipped)
		l := Loss{Start: g.until, End: g.used, Records: 1, Damaged: true, Detail: "part of the spool is damaged"}
		if ok {
			l.End = f.Start
		}
		if l.Start.IsZero() || l.Start.After(l.End) {
			l.Start = l.End
		}
		s.lose(l)
	}
	if ok && !f.whole {
		s.Log.Error("a batch in the spool is damaged and was skipped", "file", g.path, "batch", f.Sequence, "flows", f.Flows)
		s.lose(Loss{Start: f.Start, End: f.End, Flows: uint64(f.Flows), Records: 1, Damaged: true, Detail: "a batch in the spool is damaged"})
	}
}

// end notes that a segment was read to its end: what it holds is what was found.
func (s *Spool) end(g *segment) {
	g.pos = len(s.cursor.data)
	if a := s.active[g.lane]; a != nil && a.segment == g {
		if g.read == g.records {
			return
		}
		s.close(g.lane)
	}
	if g.own {
		s.unacked += g.read - g.records
	}
	g.records, g.ended = g.read, true
}

// Rewind gives everything that waits again: a stream has ended, and what was
// sent on it is not acknowledged.
func (s *Spool) Rewind() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.segments {
		g.pos, g.read, g.until = 0, 0, time.Time{}
	}
	s.cursor.segment, s.cursor.data = nil, nil
}

// Behind counts what waits beside a number of this run's records that are sent
// as they come: whether there is something for Next to give.
func (s *Spool) Behind(live int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.segments {
		if !g.own && g.size > headerSize {
			return true
		}
	}
	return s.unacked > live
}
