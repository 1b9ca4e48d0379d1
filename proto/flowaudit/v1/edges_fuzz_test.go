package flowauditv1

import (
	"testing"

	"google.golang.org/protobuf/proto"
)

// Whatever a message holds, it is read or refused.
func FuzzEdges(f *testing.F) {
	text, err := proto.Marshal(FromEdges(someEdges()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, b []byte) {
		var x EdgesResponse
		if proto.Unmarshal(b, &x) != nil {
			return
		}
		edges, err := x.ToEdges()
		if err != nil {
			return
		}
		again, err := FromEdges(edges).ToEdges()
		if err != nil || len(again) != len(edges) {
			t.Errorf("%d edges, written and read again: %d, %v", len(edges), len(again), err)
		}
	})
}
