<?php

declare(strict_types=1);

namespace Realtime\Laravel\Events;

/**
 * Something that happened on the hub, as `realtime:listen` dispatches it. A listener for this interface hears of all.
 *
 * @property-read Delivery $delivery
 */
interface HubEvent {}
