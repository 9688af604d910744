<?php

declare(strict_types=1);

namespace App;

use Illuminate\Notifications\Notifiable;

/** Somebody who is who the request says: enough for channels, and no database. */
class User extends \Illuminate\Auth\GenericUser
{
    use Notifiable;

    public static function named(?string $id, string $guard = 'web'): ?self
    {
        return $id === null ? null : new self(['id' => ctype_digit($id) ? (int) $id : $id, 'name' => "User $id", 'guard' => $guard]);
    }

    public function receivesBroadcastNotificationsOn(): string
    {
        return "App.User.$this->id";
    }
}
