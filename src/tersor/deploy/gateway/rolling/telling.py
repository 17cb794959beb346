"""What an operator sees of a rollout, in GET /v1/rollout under `models[].rollout`; null where there is no candidate.

candidate, control, reference   variants: the new one, the one that it is to replace, and the one that answers of
                                both are compared with (the fallback, else the control)
id, attempt    of this rollout; `start` begins the next attempt
state          created, gated, shadow, canary, promoted, rolled_back or paused
paused_in      shadow or canary where it is paused, else null
step, steps    number of the canary's step from 0 on, null outside; shares of all steps, 0 … 1
weight         share of requests that the candidate answers now, 0 … 1
since          {at, who, why} of the state
progress       of the step: {samples, needed_samples, elapsed_s, needed_s, most_s}; null where nothing is awaited
tests          [{name, verdict, to_harm, to_safe, samples, required, numbers}]: verdict is harmful, safe or
               undecided; to_harm and to_safe say how near a boundary is, 0 … 1; numbers by name, null: none yet
next           {action, reason} of the last look: WAIT, and what for; null before the first
traffic        {candidate, control}: {requests, errors}, of this attempt since the gateway began
shadow         {share, compared, agreement, failed, dropped, waiting, in_flight, distance, divergence}: dropped by
               reason (full, busy, late); distance of tensors relative to the reference, divergence of tokens in
               nats; null: none yet
history        [{at, state, step, weight, who, why}], the oldest first
decisions      [{at, action, reason, state, step, weight, standings, alarms, rules, progress}], the oldest first:
               all but the waits
"""
