"""What is said between the two halves: message shapes, the table of endpoints, problem bodies, event-stream frames.

The client half and the server half import this package and never each other. Message fields are camelCase on the wire and
snake_case here; an absent optional field is left out, never sent as null.

Messages that come by the thousand are `gc=False`: they hold no cycles, and the garbage collector need not look at them.
"""
