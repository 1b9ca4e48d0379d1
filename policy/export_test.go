package policy

// RenumberAt makes an engine number its groups and blocks anew when there are
// more than n, so that tests see it happen.
func (e *Engine) RenumberAt(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.renumberAt = n
}

// CompiledID tells whether what a class means to a snapshot is the same as before.
func (s *Snapshot) CompiledID(c *Class) uint64 { return s.class(c).id }

// Len is how many classes are kept.
func (c *Classes) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.byKey)
}
