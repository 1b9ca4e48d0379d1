package columns

import (
	"fmt"

	"github.com/flowaudit/flowaudit/flow"
)

// RefusedAt is the code of where a row's connections were stopped, as SQL over
// a key k and its ends. It says the same as flow.Flow.RefusedAt.
func (d *Dialect) RefusedAt() string {
	on := func(end string) string {
		return fmt.Sprintf("%[1]skind IN (%[2]d, %[3]d) AND %[1]snode = k.node", end, flow.EndpointPod, flow.EndpointNode)
	}
	notOn := func(end string) string {
		return fmt.Sprintf("(%[1]skind IN (%[2]d, %[3]d) AND %[1]snode <> '' AND %[1]snode <> k.node OR %[1]skind IN (%[4]d, %[5]d, %[6]d))",
			end, flow.EndpointPod, flow.EndpointNode, flow.EndpointService, flow.EndpointOutside, flow.EndpointAPIServer)
	}
	denied := fmt.Sprintf("%s = %d AND k.node <> '' AND k.direction <> %d", d.Verdict, flow.VerdictDenied, flow.DirectionUnknown)
	return fmt.Sprintf("CASE WHEN %s = %d AND k.reason = %d THEN %d WHEN %s AND %s AND %s THEN %d WHEN %s AND %s AND %s THEN %d ELSE %d END",
		d.Verdict, flow.VerdictUnanswered, flow.ReasonLostBetween, flow.PlaceBetween,
		denied, on(d.SourceEnd), notOn(d.DestinationEnd), flow.PlaceEgress,
		denied, on(d.DestinationEnd), notOn(d.SourceEnd), flow.PlaceIngress, flow.PlaceUnknown)
}
