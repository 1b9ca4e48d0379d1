package evidence

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
)

// Checkpoint is what a collector signs when it has stored batches: which links
// of agents' chains there are now.
type Checkpoint struct {
	Writer string `json:"writer"` // of the chain of checkpoints: a collector
	Number uint64 `json:"number"` // from 1
	Prev   Hash   `json:"prev"`   // the checkpoint before; zero of the first
	// PrevTime is when that one's batches were stored: what begins with this one
	// shows by it that none of its time is missing.
	PrevTime int64 `json:"prev_time"`
	Time     int64 `json:"time"` // Unix milliseconds: when the batches were stored
	Batches  int   `json:"batches"`
	Root     Hash  `json:"root"` // over the links
}

// Hash is the checkpoint's own, which the next one names.
func (c *Checkpoint) Hash() Hash { return hashOf(prefixCheckpoint, marshal(c)) }

// Signed is a checkpoint with its signature.
type Signed struct {
	Checkpoint
	Signature []byte `json:"signature"`
}

func (s *Signed) valid(public ed25519.PublicKey) bool {
	return signed(public, signedCheckpoint, marshal(&s.Checkpoint), s.Signature)
}

// Section is a checkpoint with its batches: what a collector adds at once.
type Section struct {
	Signed
	Links []*Batch
}

// Seal signs a checkpoint of batches, after the one before.
func (k *Key) Seal(writer string, before Link, ms int64, batches []*Batch) *Section {
	s := &Section{Links: batches}
	s.Checkpoint = Checkpoint{Writer: writer, Number: before.Number + 1, Prev: before.Hash, PrevTime: before.Time, Time: ms, Batches: len(batches), Root: linksRoot(batches)}
	s.Signature = k.sign(signedCheckpoint, marshal(&s.Checkpoint))
	return s
}

// Link is the section as the one that the next follows.
func (s *Section) Link() Link { return Link{s.Number, s.Checkpoint.Hash(), s.Time} }

func linksRoot(batches []*Batch) Hash {
	all := make([]Hash, len(batches))
	for i, b := range batches {
		all[i] = b.BatchHead.Hash()
	}
	return Root(all)
}

// strict reads JSON that has nothing but the fields of v: what is not read is
// not proven.
func strict(line []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("more than one value in a line")
	}
	return nil
}

// Tombstone says that a collector deleted flows because they were too old or
// too many. Those that were stored before Flows are gone, refused ones only
// those before Denied; Unix milliseconds.
type Tombstone struct {
	Writer string `json:"writer"`
	Time   int64  `json:"time"`
	Flows  int64  `json:"flows"`
	Denied int64  `json:"denied"`
	Reason string `json:"reason"`
}

// SignedTombstone is a tombstone with its signature.
type SignedTombstone struct {
	Tombstone
	Signature []byte `json:"signature"`
}

// Bury signs a tombstone.
func (k *Key) Bury(t Tombstone) *SignedTombstone {
	return &SignedTombstone{t, k.sign(signedTombstone, marshal(&t))}
}

// Marshal writes the tombstone as JSON.
func (t *SignedTombstone) Marshal() []byte { return marshal(t) }

func (t *SignedTombstone) valid(public ed25519.PublicKey) bool {
	return signed(public, signedTombstone, marshal(&t.Tombstone), t.Signature)
}

// covers reports whether a flow that was stored then may be gone.
func (t *Tombstone) covers(stored int64, denied bool) bool {
	if denied {
		return stored < t.Denied
	}
	return stored < t.Flows
}

// ParseTombstone reads what Marshal wrote. It proves nothing.
func ParseTombstone(text []byte) (*SignedTombstone, error) {
	t := &SignedTombstone{}
	if err := strict(text, t); err != nil {
		return nil, fmt.Errorf("read tombstone: %w", err)
	}
	return t, nil
}
